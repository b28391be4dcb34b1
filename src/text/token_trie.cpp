#include "text/token_trie.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace hadal {

TokenTrie::TokenTrie(const Tokenizer& tokenizer) : vocab_size_(tokenizer.vocab_size()) {
  constexpr std::size_t kMaxBytes = UINT16_MAX;
  std::vector<std::pair<std::string_view, std::int32_t>> sorted;
  for (std::int32_t id = 0; id < vocab_size_; ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    if (tokenizer.is_added(id)) {
      added_.push_back(id);
    } else if (!bytes.empty() && bytes.size() <= kMaxBytes) {
      sorted.emplace_back(bytes, id);
      depth_ = std::max(depth_, bytes.size());
    }
  }
  std::sort(sorted.begin(), sorted.end());
  // In order, a token shares the path of the one before it up to the first byte in which they differ.
  std::vector<std::uint32_t> path = {0};
  nodes_.push_back({0, 0, 0, 0});
  std::string_view before;
  for (const auto& [bytes, id] : sorted) {
    const auto differ = std::mismatch(before.begin(), before.end(), bytes.begin(), bytes.end());
    const auto shared = static_cast<std::size_t>(differ.first - before.begin());
    for (; path.size() > shared + 1; path.pop_back())
      nodes_[path.back()].end = static_cast<std::uint32_t>(nodes_.size());
    for (std::size_t i = shared; i < bytes.size(); ++i) {
      path.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({0, static_cast<std::uint32_t>(tokens_.size()), static_cast<std::uint16_t>(i + 1),
                        static_cast<std::uint8_t>(bytes[i])});
    }
    tokens_.push_back(id);
    before = bytes;
  }
  for (const std::uint32_t node : path) nodes_[node].end = static_cast<std::uint32_t>(nodes_.size());
  nodes_.push_back({0, static_cast<std::uint32_t>(tokens_.size()), 0, 0});
}

}  // namespace hadal
