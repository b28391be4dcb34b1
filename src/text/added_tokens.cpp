#include "text/added_tokens.h"

#include <algorithm>

namespace hadal {

StringMatcher::StringMatcher(std::vector<std::pair<std::string, std::int32_t>> strings)
    : sorted_(std::move(strings)) {
  std::sort(sorted_.begin(), sorted_.end());
  for (const auto& [content, id] : sorted_)
    ++first_of_[static_cast<std::uint8_t>(content[0]) + std::size_t{1}];
  for (std::size_t b = 0; b < 256; ++b) first_of_[b + 1] += first_of_[b];
}

std::optional<StringMatcher::Match> StringMatcher::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    const auto b = static_cast<std::uint8_t>(text[begin]);
    if (first_of_[b] == first_of_[b + std::size_t{1}]) continue;
    if (auto match = longest_at(text, begin)) return match;
  }
  return std::nullopt;
}

std::optional<StringMatcher::Match> StringMatcher::longest_at(std::string_view text,
                                                              std::size_t begin) const {
  // The strings that share `depth` bytes with the text are neighbours in sorted order, the one of exactly
  // that length before the longer ones.
  const auto b = static_cast<std::uint8_t>(text[begin]);
  auto low = sorted_.begin() + first_of_[b];
  auto high = sorted_.begin() + first_of_[b + std::size_t{1}];
  std::optional<Match> longest;
  for (std::size_t depth = 1; low != high; ++depth) {
    if (low->first.size() == depth) {
      longest = Match{begin, begin + depth, low->second};
      ++low;
    }
    if (begin + depth == text.size()) break;
    const char wanted = text[begin + depth];
    const auto byte_at_depth = [&](const auto& entry) {
      return static_cast<std::uint8_t>(entry.first[depth]);
    };
    const auto value = static_cast<std::uint8_t>(wanted);
    low = std::partition_point(low, high, [&](const auto& entry) { return byte_at_depth(entry) < value; });
    high = std::partition_point(low, high, [&](const auto& entry) { return byte_at_depth(entry) == value; });
  }
  return longest;
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens) {
  std::vector<std::pair<std::string, std::int32_t>> as_written;
  std::vector<std::pair<std::string, std::int32_t>> normalized;
  for (const AddedToken& token : tokens) {
    (token.normalized ? normalized : as_written).emplace_back(token.content, token.id);
  }
  as_written_ = StringMatcher(std::move(as_written));
  normalized_ = StringMatcher(std::move(normalized));
}

}  // namespace hadal
