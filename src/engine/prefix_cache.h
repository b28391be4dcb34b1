// What sequences have read, kept so that nobody reads it again: snapshots of states in a radix tree over
// their tokens, one tree per namespace.
//
// A node is a prefix of tokens. It may hold a snapshot: the fixed part of a state at that length and its
// pages by reference, so what nodes have in common is in memory once. A hit is the longest prefix of a prompt
// whose node has one; the few tokens behind it are read again. Tokens are compared one by one, never by hash,
// so no collision can hand out another text's state. Namespaces share nothing (docs/serving.md).
//
// A snapshot may also lie on disk, under the id that the node knows; memory is then only the faster copy.
// Belongs to one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/sequence_state.h"

namespace hadal {

struct PrefixNode {
  std::vector<std::int32_t> edge;  // the tokens between the parent and here
  PrefixNode* parent = nullptr;
  std::map<std::int32_t, std::unique_ptr<PrefixNode>> children;  // by the first token of their edge
  std::int64_t length = 0;                                       // tokens from the root to here
  std::optional<SequenceState> snapshot;
  std::uint64_t disk_id = 0;  // 0: not on disk
  bool writing = false;       // on its way there: the snapshot stays in memory until it has arrived
  std::uint64_t last_used = 0;

  bool kept() const { return snapshot.has_value() || disk_id != 0; }
};

class PrefixCache {
 public:
  explicit PrefixCache(const StateLayout& layout) : layout_(layout) {}
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // The deepest node with a snapshot, in memory or on disk, whose tokens begin `tokens` and are at most
  // `most` of them; null if there is none. Counts as a use.
  PrefixNode* find(std::string_view name_space, std::span<const std::int32_t> tokens, std::int64_t most);

  // Puts a snapshot that has read exactly `tokens` into its node, which is made if need be, and counts as a
  // use. A snapshot that is there already stays.
  PrefixNode* insert(std::string_view name_space, std::span<const std::int32_t> tokens,
                     SequenceState snapshot);
  // A node for a snapshot that lies on disk.
  PrefixNode* insert_on_disk(std::string_view name_space, std::span<const std::int32_t> tokens,
                             std::uint64_t disk_id, std::uint64_t last_used);

  // Takes the least valuable snapshot out of memory: that which saves the fewest tokens of reading for its
  // bytes, halved for every kHalfLife uses since its own. The node stays while it is on disk. False if there
  // is none that can go.
  bool evict();

  // A kept node stays where it is in memory, so whoever writes it to disk may hold its address meanwhile.
  PrefixNode* on_disk(std::uint64_t disk_id) const;           // null if no node has it
  void begin_write(PrefixNode* node, std::uint64_t disk_id);  // the node has a snapshot
  void end_write(PrefixNode* node) { node->writing = false; }
  void forget_on_disk(PrefixNode* node);  // its file is gone, or was never written

  std::int64_t snapshots() const { return snapshots_; }
  std::int64_t nodes() const { return nodes_; }
  std::uint64_t clock() const { return clock_; }

  // Every node, parents before children.
  template <class Visit>
  void for_each(Visit&& visit) {
    for (auto& [name, root] : roots_) visit_below(name, *root, visit);
  }

 private:
  static constexpr double kHalfLife = 64;

  PrefixNode* node_at(std::string_view name_space, std::span<const std::int32_t> tokens);
  PrefixNode* add_child(PrefixNode* parent, std::span<const std::int32_t> edge);
  static PrefixNode* split(PrefixNode* node, std::size_t at, std::int64_t& nodes);
  void remove_if_useless(PrefixNode* node);
  double value(const PrefixNode& node) const;
  template <class Visit>
  static void visit_below(const std::string& name, PrefixNode& node, Visit& visit) {
    visit(name, node);
    for (auto& [token, child] : node.children) visit_below(name, *child, visit);
  }

  const StateLayout& layout_;
  std::map<std::string, std::unique_ptr<PrefixNode>, std::less<>> roots_;
  std::map<std::uint64_t, PrefixNode*> on_disk_;
  std::uint64_t clock_ = 0;  // uses so far
  std::int64_t snapshots_ = 0;
  std::int64_t nodes_ = 0;
};

}  // namespace hadal
