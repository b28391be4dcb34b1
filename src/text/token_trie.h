// The ordinary tokens of a vocabulary by their bytes: a trie, laid out so that walking it is going through an
// array, and leaving out a subtree is a jump.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <hadal/tokenizer.h>

namespace hadal {

class TokenTrie {
 public:
  // Of one byte. Those below it follow at once, up to `end`.
  struct Node {
    std::uint32_t end;
    std::uint32_t first_token;  // its tokens go up to the next node's
    std::uint16_t depth;        // bytes up to and with this one
    std::uint8_t byte;
  };

  explicit TokenTrie(const Tokenizer& tokenizer);

  // nodes()[0] is the root, which is no byte.
  std::span<const Node> nodes() const { return std::span(nodes_).first(nodes_.size() - 1); }
  std::span<const std::int32_t> tokens(std::size_t node) const {
    return std::span(tokens_).subspan(nodes_[node].first_token,
                                      nodes_[node + 1].first_token - nodes_[node].first_token);
  }
  std::size_t depth() const { return depth_; }  // the longest token
  std::int32_t vocab_size() const { return vocab_size_; }
  const std::vector<std::int32_t>& added_tokens() const { return added_; }  // not in the trie

 private:
  std::vector<Node> nodes_;
  std::vector<std::int32_t> tokens_, added_;
  std::size_t depth_ = 0;
  std::int32_t vocab_size_ = 0;
};

}  // namespace hadal
