#include "text/text_pieces.h"

namespace hadal {

std::vector<std::size_t> piece_ends(std::string_view text, std::size_t wanted) {
  std::vector<std::size_t> ends;
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  for (std::size_t at = wanted; at + 1 < text.size(); at = ends.back() + wanted) {
    while (at + 1 < text.size() && !(text[at] == '\n' && letter(text[at - 1]) && letter(text[at + 1]))) ++at;
    if (at + 1 >= text.size()) break;
    ends.push_back(at + 1);
  }
  ends.push_back(text.size());
  return ends;
}

}  // namespace hadal
