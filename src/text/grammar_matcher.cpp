#include "text/grammar_matcher.h"

#include <algorithm>

namespace hadal {
namespace {

using StateId = GrammarMachine::StateId;
using NodeId = GrammarMachine::NodeId;

// Configurations of all the states that one walk may come to. Those of ordinary schemas come to 6000 at most.
constexpr std::size_t kMaxWork = 20'000;
// A walk over fewer nodes is done again rather than remembered.
constexpr std::size_t kCheapWalk = 1024;

}  // namespace

// States, and the masks of some. When it has grown too large a new one is begun, into which answers move with
// their next token.
struct CompiledGrammar::Space {
  struct Mask {
    TokenSet tokens;                   // that stay within the frame, or reach its end and stop
    std::vector<std::uint32_t> exits;  // nodes of the trie at which the frame ends, with tokens beyond
  };

  Space(const Grammar& grammar, const TokenTrie& trie)
      : machine(grammar), trie_(trie), stack_(trie.depth() + 1) {}

  std::size_t bytes() const { return machine.bytes() + mask_bytes_; }
  std::size_t masks_kept() const { return masks_.size(); }

  void allowed(StateId state, TokenSet& tokens) {
    const auto n_words = (static_cast<std::size_t>(trie_.vocab_size()) + 63) / 64;
    tokens.assign(n_words, 0);
    members_.assign(machine.nodes(state).begin(), machine.nodes(state).end());
    loose_.clear();
    framed_.clear();
    for (const NodeId node : members_) {
      const GrammarExpr& expr = machine.expr_of(node);
      if (expr.kind == GrammarExpr::Kind::token) {
        add(tokens, static_cast<std::int32_t>(expr.a));
      } else if (const auto framed = machine.framed(node, static_cast<std::uint32_t>(trie_.depth() + 1))) {
        framed_.emplace_back(framed->outside, framed->inside);
      } else {
        loose_.push_back(node);
      }
    }
    if (!loose_.empty()) add(tokens, mask_of(machine.state_of(loose_)).tokens);
    std::sort(framed_.begin(), framed_.end());
    for (std::size_t begin = 0, end = 0; begin < framed_.size(); begin = end) {
      const NodeId outside = framed_[begin].first;
      loose_.clear();
      for (; end < framed_.size() && framed_[end].first == outside; ++end) {
        if (loose_.empty() || loose_.back() != framed_[end].second) loose_.push_back(framed_[end].second);
      }
      const Mask& mask = mask_of(machine.state_of(loose_));
      add(tokens, mask.tokens);
      const StateId beyond = machine.state_at(outside);
      begin_work();
      for (const std::uint32_t exit : mask.exits) walk(exit, beyond, tokens, nullptr);
    }
  }

  GrammarMachine machine;

 private:
  static void add(TokenSet& tokens, std::int32_t token) {
    tokens[static_cast<std::size_t>(token) / 64] |= std::uint64_t{1} << (token % 64);
  }
  static void add(TokenSet& tokens, const TokenSet& more) {
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] |= more[i];
  }

  void begin_work() {
    ++round_;
    work_ = 0;
  }

  // Marks the tokens below the node `root` that can be read from `from`; false if that is too much work. What
  // counts as work is how many states there are on the way, known before or not.
  bool walk(std::size_t root, StateId from, TokenSet& tokens, std::vector<std::uint32_t>* exits) {
    const auto nodes = trie_.nodes();
    const std::size_t base = nodes[root].depth;
    stack_[0] = from;
    visited_ = 0;
    for (std::size_t i = root + 1; i < nodes[root].end; ++visited_) {
      const TokenTrie::Node& node = nodes[i];
      const StateId to = machine.step(stack_[node.depth - base - 1], node.byte);
      if (to == GrammarMachine::kDead) {
        i = node.end;
        continue;
      }
      if (rounds_.size() <= to) rounds_.resize(to + std::size_t{256}, 0);
      if (rounds_[to] != round_) {
        rounds_[to] = round_;
        work_ += machine.nodes(to).size();
        if (work_ > kMaxWork) return false;
      }
      for (const std::int32_t token : trie_.tokens(i)) add(tokens, token);
      if (exits != nullptr && machine.leaves(to) && node.end > i + 1)
        exits->push_back(static_cast<std::uint32_t>(i));
      stack_[node.depth - base] = to;
      ++i;
    }
    return true;
  }

  const Mask& mask_of(StateId state) {
    if (const auto known = masks_.find(state); known != masks_.end()) return known->second;
    Mask& mask = passing_;
    mask.tokens.assign((static_cast<std::size_t>(trie_.vocab_size()) + 63) / 64, 0);
    mask.exits.clear();
    begin_work();
    bool is_cheap = false;
    if (walk(0, state, mask.tokens, &mask.exits)) {
      is_cheap = visited_ < kCheapWalk;
    } else {
      std::fill(mask.tokens.begin(), mask.tokens.end(), 0);
      mask.exits.clear();
      const auto nodes = trie_.nodes();
      for (std::size_t i = 1; i < nodes.size(); i = nodes[i].end) {
        if (machine.step(state, nodes[i].byte) == GrammarMachine::kDead) continue;
        for (const std::int32_t token : trie_.tokens(i)) add(mask.tokens, token);
      }
    }
    if (is_cheap) return mask;
    mask_bytes_ += mask.tokens.size() * 8 + mask.exits.size() * 4;
    return masks_.emplace(state, mask).first->second;
  }

  const TokenTrie& trie_;
  std::unordered_map<StateId, Mask> masks_;
  std::size_t mask_bytes_ = 0;
  std::vector<StateId> stack_;
  std::vector<std::uint32_t> rounds_;  // by state: the walk that came to it last
  std::uint32_t round_ = 0;
  std::size_t work_ = 0, visited_ = 0;
  Mask passing_;  // one that is not remembered
  std::vector<NodeId> members_, loose_;
  std::vector<std::pair<NodeId, NodeId>> framed_;  // what is outside, and inside
};

CompiledGrammar::CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> trie,
                                 std::size_t max_bytes)
    : grammar_(std::move(grammar)), trie_(std::move(trie)), max_bytes_(max_bytes) {}

std::size_t CompiledGrammar::masks_kept() const {
  const std::lock_guard lock(mutex_);
  return space_ == nullptr ? 0 : space_->masks_kept();
}

std::shared_ptr<CompiledGrammar::Space> CompiledGrammar::current_space() {
  if (space_ == nullptr || space_->bytes() > max_bytes_) space_ = std::make_shared<Space>(grammar_, *trie_);
  return space_;
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<CompiledGrammar> grammar) : grammar_(std::move(grammar)) {
  const std::lock_guard lock(grammar_->mutex_);
  space_ = grammar_->current_space();
  state_ = space_->machine.start();
}

void GrammarMatcher::settle() {
  auto present = grammar_->current_space();
  if (present == space_) return;
  state_ = present->machine.adopt(space_->machine, state_);
  space_ = std::move(present);
}

bool GrammarMatcher::accept(std::int32_t token, std::string_view bytes) {
  if (!bytes.empty()) return accept_text(bytes);
  const std::lock_guard lock(grammar_->mutex_);
  settle();
  const StateId next = space_->machine.step_token(state_, token);
  if (next == GrammarMachine::kDead) return false;
  state_ = next;
  return true;
}

bool GrammarMatcher::accept_text(std::string_view bytes) {
  const std::lock_guard lock(grammar_->mutex_);
  settle();
  StateId state = state_;
  for (const char byte : bytes) state = space_->machine.step(state, static_cast<std::uint8_t>(byte));
  if (state == GrammarMachine::kDead) return false;
  state_ = state;
  return true;
}

bool GrammarMatcher::can_end() const {
  const std::lock_guard lock(grammar_->mutex_);
  return space_->machine.accepts(state_);
}

void GrammarMatcher::allowed(TokenSet& tokens) {
  const std::lock_guard lock(grammar_->mutex_);
  settle();
  space_->allowed(state_, tokens);
}

}  // namespace hadal
