// Finds added tokens (`<｜User｜>`, `<think>`, ...) in text, as the `tokenizers` library does: the leftmost,
// and of those that begin there the longest; tokens with "normalized": false are taken out of the whole text
// first, the others from what is left between them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hadal/error.h>

namespace hadal {

struct AddedToken {
  std::string content;  // not empty
  std::int32_t id = 0;
  bool normalized = false;
  bool special = false;
};

// One set of strings, searched leftmost-longest.
class StringMatcher {
 public:
  struct Match {
    std::size_t begin;
    std::size_t end;
    std::int32_t id;
  };

  StringMatcher() = default;
  explicit StringMatcher(std::vector<std::pair<std::string, std::int32_t>> strings);

  // The first match at or after `from`.
  std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  std::optional<Match> longest_at(std::string_view text, std::size_t begin) const;

  std::vector<std::pair<std::string, std::int32_t>> sorted_;
  // sorted_[first_of_[b]] is the first string that begins with byte b or above.
  std::array<std::uint32_t, 257> first_of_{};
};

class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(const std::vector<AddedToken>& tokens);

  // Calls visit(StringMatcher::Match) -> Status for each added token in `text`, in order; the first error
  // ends it.
  template <class Visit>
  Status for_each(std::string_view text, Visit&& visit) const {
    for (std::size_t done = 0; done < text.size();) {
      const auto as_written = as_written_.find(text, done);
      const std::string_view before = text.substr(0, as_written ? as_written->begin : text.size());
      while (const auto match = normalized_.find(before, done)) {
        HADAL_RETURN_IF_ERROR(visit(*match));
        done = match->end;
      }
      if (!as_written) break;
      HADAL_RETURN_IF_ERROR(visit(*as_written));
      done = as_written->end;
    }
    return {};
  }

 private:
  StringMatcher as_written_;  // "normalized": false
  StringMatcher normalized_;
};

}  // namespace hadal
