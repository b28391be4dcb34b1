#include "engine/prefix_cache.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace hadal {

PrefixNode* PrefixCache::find(std::string_view name_space, std::span<const std::int32_t> tokens,
                              std::int64_t most) {
  const auto root = roots_.find(name_space);
  if (root == roots_.end()) return nullptr;
  tokens = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(std::max<std::int64_t>(most, 0))));
  PrefixNode* node = root->second.get();
  PrefixNode* best = nullptr;
  while (!tokens.empty()) {
    const auto child = node->children.find(tokens.front());
    if (child == node->children.end()) break;
    const auto& edge = child->second->edge;
    if (edge.size() > tokens.size() || !std::equal(edge.begin(), edge.end(), tokens.begin())) break;
    node = child->second.get();
    tokens = tokens.subspan(edge.size());
    if (node->kept()) best = node;
  }
  if (best != nullptr) best->last_used = ++clock_;
  return best;
}

PrefixNode* PrefixCache::add_child(PrefixNode* parent, std::span<const std::int32_t> edge) {
  auto node = std::make_unique<PrefixNode>();
  node->edge.assign(edge.begin(), edge.end());
  node->parent = parent;
  node->length = parent->length + static_cast<std::int64_t>(edge.size());
  ++nodes_;
  return (parent->children[edge.front()] = std::move(node)).get();
}

// Divides the edge of `node` behind its first `at` tokens: a new node takes its place, with it as only child.
PrefixNode* PrefixCache::split(PrefixNode* node, std::size_t at, std::int64_t& nodes) {
  std::unique_ptr<PrefixNode>& place = node->parent->children[node->edge.front()];
  auto upper = std::make_unique<PrefixNode>();
  const auto middle = node->edge.begin() + static_cast<std::ptrdiff_t>(at);
  upper->edge.assign(node->edge.begin(), middle);
  upper->parent = node->parent;
  upper->length = node->parent->length + static_cast<std::int64_t>(at);
  node->edge.erase(node->edge.begin(), middle);
  node->parent = upper.get();
  upper->children[node->edge.front()] = std::move(place);
  place = std::move(upper);
  ++nodes;
  return place.get();
}

PrefixNode* PrefixCache::node_at(std::string_view name_space, std::span<const std::int32_t> tokens) {
  auto& root = roots_[std::string(name_space)];
  if (!root) root = std::make_unique<PrefixNode>();
  PrefixNode* node = root.get();
  while (!tokens.empty()) {
    const auto child = node->children.find(tokens.front());
    if (child == node->children.end()) return add_child(node, tokens);
    node = child->second.get();
    const auto& edge = node->edge;
    const auto shorter = static_cast<std::ptrdiff_t>(std::min(edge.size(), tokens.size()));
    const auto differs = std::mismatch(edge.begin(), edge.begin() + shorter, tokens.begin()).first;
    const auto same = static_cast<std::size_t>(differs - edge.begin());
    if (same < edge.size()) node = split(node, same, nodes_);
    tokens = tokens.subspan(same);
  }
  return node;
}

PrefixNode* PrefixCache::insert(std::string_view name_space, std::span<const std::int32_t> tokens,
                                SequenceState snapshot) {
  HADAL_CHECK(snapshot.length() == static_cast<std::int64_t>(tokens.size()) && !tokens.empty());
  PrefixNode* node = node_at(name_space, tokens);
  node->last_used = ++clock_;
  if (!node->snapshot) {
    node->snapshot.emplace(std::move(snapshot));
    ++snapshots_;
  }
  return node;
}

PrefixNode* PrefixCache::insert_on_disk(std::string_view name_space, std::span<const std::int32_t> tokens,
                                        std::uint64_t disk_id, std::uint64_t last_used) {
  PrefixNode* node = node_at(name_space, tokens);
  node->disk_id = disk_id;
  on_disk_[disk_id] = node;
  node->last_used = std::max(node->last_used, last_used);
  clock_ = std::max(clock_, last_used);
  return node;
}

// Tokens that would have to be read again without this snapshot, for the bytes that it alone holds.
double PrefixCache::value(const PrefixNode& node) const {
  const PrefixNode* above = node.parent;
  while (above != nullptr && !above->kept()) above = above->parent;
  const std::int64_t saved = node.length - (above == nullptr ? 0 : above->length);
  const std::int64_t pages = (saved + kPageTokens - 1) / kPageTokens;
  const auto bytes = static_cast<double>(layout_.fixed_bytes + pages * layout_.page_bytes);
  // From disk it comes back without reading the tokens.
  const double worth = static_cast<double>(saved) * (node.disk_id != 0 ? 0.25 : 1.0);
  return worth / bytes * std::exp2(-static_cast<double>(clock_ - node.last_used) / kHalfLife);
}

bool PrefixCache::evict() {
  PrefixNode* worst = nullptr;
  double least = 0;
  for_each([&](const std::string& /*name*/, PrefixNode& node) {
    if (!node.snapshot || node.writing) return;
    const double worth = value(node);
    if (worst == nullptr || worth < least) {
      worst = &node;
      least = worth;
    }
  });
  if (worst == nullptr) return false;
  worst->snapshot.reset();
  --snapshots_;
  remove_if_useless(worst);
  return true;
}

PrefixNode* PrefixCache::on_disk(std::uint64_t disk_id) const {
  const auto found = on_disk_.find(disk_id);
  return found == on_disk_.end() ? nullptr : found->second;
}

void PrefixCache::begin_write(PrefixNode* node, std::uint64_t disk_id) {
  HADAL_CHECK(node->snapshot.has_value() && node->disk_id == 0);
  node->disk_id = disk_id;
  node->writing = true;
  on_disk_[disk_id] = node;
}

void PrefixCache::forget_on_disk(PrefixNode* node) {
  on_disk_.erase(node->disk_id);
  node->disk_id = 0;
  node->writing = false;
  remove_if_useless(node);
}

// A node without a snapshot is needed where paths part, or to lead on; one with a single child joins it.
void PrefixCache::remove_if_useless(PrefixNode* node) {
  while (node->parent != nullptr && !node->kept()) {
    PrefixNode* parent = node->parent;
    if (node->children.empty()) {
      parent->children.erase(node->edge.front());
      --nodes_;
      node = parent;
      continue;
    }
    if (node->children.size() > 1) return;
    std::unique_ptr<PrefixNode> child = std::move(node->children.begin()->second);
    child->edge.insert(child->edge.begin(), node->edge.begin(), node->edge.end());
    child->parent = parent;
    parent->children[child->edge.front()] = std::move(child);
    --nodes_;
    return;
  }
  if (node->parent != nullptr || !node->children.empty()) return;
  const auto root = std::find_if(roots_.begin(), roots_.end(),
                                 [node](const auto& entry) { return entry.second.get() == node; });
  if (root != roots_.end()) roots_.erase(root);  // nobody of this namespace has anything left
}

}  // namespace hadal
