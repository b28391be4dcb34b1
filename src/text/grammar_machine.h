// Reads a grammar, a byte or a special token at a time: a pushdown automaton whose stacks are shared lists.
//
// A configuration is an expression to match and the list of what follows it. Where the grammar leaves a
// choice several configurations live at once; the set of them is a state. Lists and states are interned:
// equal ones have one number, so a transition that was computed once is a table look-up from then on, and
// text that goes round in a loop (the inside of a string) goes round among few states. Nothing is built
// ahead, so a grammar costs what the text that is read touches.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "text/grammar.h"

namespace hadal {

// Numbers for things that lie in a vector, found by their hash: open addressing, nothing is ever removed.
class InternTable {
 public:
  // The number of the thing with this hash for which equal(number) holds, else `otherwise` after it was put
  // in.
  template <class Equal>
  std::uint32_t find_or_insert(std::uint64_t hash, std::uint32_t otherwise, const Equal& equal) {
    if ((size_ + 1) * 4 > slots_.size() * 3) grow();
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
      Slot& slot = slots_[at];
      if (slot.number == kNone) {
        slot = {hash, otherwise};
        ++size_;
        return otherwise;
      }
      if (slot.hash == hash && equal(slot.number)) return slot.number;
    }
  }

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t number = kNone;
  };
  void grow();

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
};

class GrammarMachine {
 public:
  using NodeId = std::uint32_t;
  using StateId = std::uint32_t;

  // What is still to be matched: `expr`, then `next`.
  struct Node {
    ExprId expr;
    std::uint32_t need;  // repeat: how often it must still come; literal: bytes that were read
    std::uint32_t room;  // repeat: how often it may still come
    NodeId next;

    friend bool operator==(const Node&, const Node&) = default;
  };

  static constexpr StateId kDead = 0;
  static constexpr NodeId kEndNode = 0, kUnknownNode = 1;

  // `grammar` must outlive the machine.
  explicit GrammarMachine(const Grammar& grammar);

  StateId start() { return state_at(node(grammar_->root, kEndNode)); }
  StateId step(StateId state, std::uint8_t byte) {
    StateId& known = transitions_[std::size_t{state} * grammar_->n_classes + grammar_->class_of[byte]];
    return known != kUnexplored ? known : explore(state, byte);
  }
  StateId step_token(StateId state, std::int32_t token);

  // Whether the text may end here.
  bool accepts(StateId state) const;
  // Whether the frame that was looked at apart may end here.
  bool leaves(StateId state) const { return states_[state].leaves; }
  // What may come next: nodes of bytes, literals, tokens and ends, ascending.
  std::span<const NodeId> nodes(StateId state) const {
    return std::span(members_).subspan(states_[state].begin, states_[state].size);
  }
  const Node& at(NodeId node) const { return nodes_[node]; }
  const GrammarExpr& expr_of(NodeId node) const { return grammar_->exprs[nodes_[node].expr]; }

  NodeId intern(const Node& node);
  StateId state_of(std::span<const NodeId> nodes);  // of nodes as nodes() has them
  StateId state_at(NodeId node);                    // before `node`

  // The number here of a state of another machine over the same grammar.
  StateId adopt(const GrammarMachine& other, StateId state);

  // A frame that a node stands in, looked at apart from what is around it.
  struct Framed {
    NodeId inside;   // the node as if the frame were all there is, counters no larger than `most`
    NodeId outside;  // what follows the frame
  };
  // The innermost frame; nothing for a node that stands in none.
  std::optional<Framed> framed(NodeId node, std::uint32_t most);

  std::size_t bytes() const {  // about what it takes in memory
    return 2 * nodes_.size() * sizeof(Node) + (transitions_.size() + members_.size()) * sizeof(StateId);
  }

 private:
  static constexpr StateId kUnexplored = UINT32_MAX;
  struct State {
    std::uint32_t begin, size;  // in members_
    bool leaves;
  };

  NodeId node(ExprId expr, NodeId next);  // with the counters that `expr` begins with
  StateId explore(StateId state, std::uint8_t byte);
  void close(NodeId node);  // appends what may come first to reached_
  void begin_closing();
  StateId closed();

  const Grammar* grammar_;
  std::vector<Node> nodes_;
  InternTable node_table_;
  std::vector<State> states_;
  std::vector<NodeId> members_;
  InternTable state_table_;
  std::vector<StateId> transitions_;  // [n_states, n_classes]

  // Scratch of one transition.
  std::vector<NodeId> reached_, pending_, chain_;
  std::vector<std::uint32_t> seen_;  // by node: the transition that closed it last
  std::uint32_t closing_ = 0;
};

}  // namespace hadal
