#include "text/grammar_machine.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace hadal {
namespace {

std::uint64_t mixed(std::uint64_t hash, std::uint64_t x) {
  hash = (hash ^ x) * 0x9E3779B97F4A7C15U;
  return hash ^ (hash >> 29);
}

}  // namespace

void InternTable::grow() {
  std::vector<Slot> old =
      std::exchange(slots_, std::vector<Slot>(std::max<std::size_t>(64, slots_.size() * 2)));
  const std::size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.number == kNone) continue;
    std::size_t at = slot.hash & mask;
    while (slots_[at].number != kNone) at = (at + 1) & mask;
    slots_[at] = slot;
  }
}

GrammarMachine::GrammarMachine(const Grammar& grammar) : grammar_(&grammar) {
  intern({Grammar::kEnd, 0, 0, kEndNode});
  intern({Grammar::kUnknown, 0, 0, kUnknownNode});
  state_of({});  // kDead
  std::fill(transitions_.begin(), transitions_.end(), kDead);
}

GrammarMachine::NodeId GrammarMachine::intern(const Node& node) {
  const std::uint64_t hash =
      mixed(mixed(node.expr, std::uint64_t{node.need} << 32 | node.room), std::uint64_t{node.next});
  const auto fresh = static_cast<NodeId>(nodes_.size());
  const NodeId id =
      node_table_.find_or_insert(hash, fresh, [&](std::uint32_t known) { return nodes_[known] == node; });
  if (id == fresh) nodes_.push_back(node);
  return id;
}

GrammarMachine::NodeId GrammarMachine::node(ExprId expr, NodeId next) {
  const GrammarExpr& e = grammar_->exprs[expr];
  if (e.kind == GrammarExpr::Kind::empty) return next;
  const bool counts = e.kind == GrammarExpr::Kind::repeat;
  return intern({expr, counts ? e.b : 0, counts ? e.c : 0, next});
}

GrammarMachine::StateId GrammarMachine::state_of(std::span<const NodeId> nodes) {
  std::uint64_t hash = nodes.size();
  for (const NodeId node : nodes) hash = mixed(hash, node);
  const auto fresh = static_cast<StateId>(states_.size());
  const StateId id = state_table_.find_or_insert(hash, fresh, [&](std::uint32_t known) {
    return std::equal(nodes.begin(), nodes.end(), members_.begin() + states_[known].begin,
                      members_.begin() + states_[known].begin + states_[known].size);
  });
  if (id != fresh) return id;
  states_.push_back({static_cast<std::uint32_t>(members_.size()), static_cast<std::uint32_t>(nodes.size()),
                     std::binary_search(nodes.begin(), nodes.end(), kUnknownNode)});
  members_.insert(members_.end(), nodes.begin(), nodes.end());
  transitions_.resize(transitions_.size() + grammar_->n_classes, kUnexplored);
  return id;
}

void GrammarMachine::begin_closing() {
  reached_.clear();
  ++closing_;
}

// Takes nodes apart until what comes first in them is a byte, a token or an end. A node is looked at once in
// a transition, so loops that read nothing end.
void GrammarMachine::close(NodeId first) {
  using Kind = GrammarExpr::Kind;
  pending_.push_back(first);
  while (!pending_.empty()) {
    const NodeId id = pending_.back();
    pending_.pop_back();
    if (seen_.size() < nodes_.size()) seen_.resize(nodes_.size() * 2, 0);
    if (std::exchange(seen_[id], closing_) == closing_) continue;
    const Node here = nodes_[id];
    const GrammarExpr& e = grammar_->exprs[here.expr];
    switch (e.kind) {
      case Kind::bytes:
      case Kind::literal:
      case Kind::token:
      case Kind::end:
      case Kind::unknown:
        reached_.push_back(id);
        break;
      case Kind::sequence:
        pending_.push_back(node(e.a, node(e.b, here.next)));
        break;
      case Kind::choice:
        for (std::uint32_t i = 0; i < e.b; ++i)
          pending_.push_back(node(grammar_->alternatives[e.a + i], here.next));
        break;
      case Kind::repeat: {
        if (here.need == 0) pending_.push_back(here.next);
        const std::uint32_t room = here.room == Grammar::kUnlimited ? here.room : here.room - 1;
        const NodeId again =
            room == 0 ? here.next : intern({here.expr, here.need > 0 ? here.need - 1 : 0, room, here.next});
        pending_.push_back(node(e.a, again));
        break;
      }
      case Kind::frame:
        pending_.push_back(node(e.a, intern({Grammar::kLeave, 0, 0, here.next})));
        break;
      case Kind::leave:
      case Kind::empty:
        pending_.push_back(here.next);
        break;
      case Kind::never:
        break;
    }
  }
}

GrammarMachine::StateId GrammarMachine::closed() {
  std::sort(reached_.begin(), reached_.end());
  return state_of(reached_);
}

GrammarMachine::StateId GrammarMachine::state_at(NodeId node) {
  begin_closing();
  close(node);
  return closed();
}

GrammarMachine::StateId GrammarMachine::explore(StateId state, std::uint8_t byte) {
  begin_closing();
  const State from = states_[state];
  for (std::uint32_t i = from.begin; i < from.begin + from.size; ++i) {
    const Node here = nodes_[members_[i]];
    const GrammarExpr& e = grammar_->exprs[here.expr];
    if (e.kind == GrammarExpr::Kind::bytes) {
      if (grammar_->sets[e.a][byte]) close(here.next);
    } else if (e.kind == GrammarExpr::Kind::literal) {
      const std::string& text = grammar_->literals[e.a];
      if (static_cast<std::uint8_t>(text[here.need]) != byte) continue;
      close(here.need + 1 == text.size() ? here.next : intern({here.expr, here.need + 1, 0, here.next}));
    }
  }
  const StateId to = closed();
  transitions_[std::size_t{state} * grammar_->n_classes + grammar_->class_of[byte]] = to;
  return to;
}

GrammarMachine::StateId GrammarMachine::step_token(StateId state, std::int32_t token) {
  begin_closing();
  const State from = states_[state];
  for (std::uint32_t i = from.begin; i < from.begin + from.size; ++i) {
    const Node here = nodes_[members_[i]];
    const GrammarExpr& e = grammar_->exprs[here.expr];
    if (e.kind == GrammarExpr::Kind::token && e.a == static_cast<std::uint32_t>(token)) close(here.next);
  }
  return closed();
}

bool GrammarMachine::accepts(StateId state) const {
  const auto all = nodes(state);
  return std::binary_search(all.begin(), all.end(), kEndNode);
}

GrammarMachine::StateId GrammarMachine::adopt(const GrammarMachine& other, StateId state) {
  std::unordered_map<NodeId, NodeId> moved = {{kEndNode, kEndNode}, {kUnknownNode, kUnknownNode}};
  std::vector<NodeId> kept;
  for (const NodeId member : other.nodes(state)) {
    chain_.clear();
    for (NodeId id = member; moved.find(id) == moved.end(); id = other.nodes_[id].next) chain_.push_back(id);
    for (std::size_t i = chain_.size(); i-- > 0;) {
      Node copy = other.nodes_[chain_[i]];
      copy.next = moved.at(copy.next);
      moved.emplace(chain_[i], intern(copy));
    }
    kept.push_back(moved.at(member));
  }
  std::sort(kept.begin(), kept.end());
  return state_of(kept);
}

std::optional<GrammarMachine::Framed> GrammarMachine::framed(NodeId node, std::uint32_t most) {
  chain_.clear();
  NodeId id = node;
  for (; id > kUnknownNode && nodes_[id].expr != Grammar::kLeave; id = nodes_[id].next) chain_.push_back(id);
  if (id <= kUnknownNode) return std::nullopt;
  Framed framed{intern({Grammar::kLeave, 0, 0, kUnknownNode}), nodes_[id].next};
  for (std::size_t i = chain_.size(); i-- > 0;) {
    Node copy = nodes_[chain_[i]];
    if (grammar_->exprs[copy.expr].kind == GrammarExpr::Kind::repeat) {
      copy.need = std::min(copy.need, most);
      if (copy.room != Grammar::kUnlimited) copy.room = std::min(copy.room, most);
    }
    copy.next = framed.inside;
    framed.inside = intern(copy);
  }
  return framed;
}

}  // namespace hadal
