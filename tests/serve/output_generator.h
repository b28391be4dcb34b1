// What models write, and what they write by mistake, from a seed: well-formed turns with what they mean, and
// the same after blows. Tokens are cut as no tokenizer would, through characters and tags.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <hadal/tokenizer.h>

#include "text/output_parser.h"

namespace hadal::test {

class OutputGenerator {
 public:
  OutputGenerator(Tokenizer tokenizer, std::uint64_t seed);

  // A turn that begins within reasoning or not, with calls of `f` and `g` (kOutputTools) if there are
  // `tools`. `meaning`: what a client should understand.
  std::string turn(bool thinking, bool tools, ParsedMessage& meaning);
  // Up to `n` blows: pieces cut out, doubled, swapped, fragments of markup and broken bytes put in, the end
  // cut off.
  std::string damaged(std::string output, int n);
  // As tokens of random lengths; special tokens mostly, not always, as such.
  std::vector<std::int32_t> tokens(std::string_view bytes);
  // The same bytes as other tokens; special ones stay.
  std::vector<std::int32_t> cut_anew(const std::vector<std::int32_t>& tokens);

  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }
  bool chance(int percent) { return below(100) < static_cast<std::size_t>(percent); }

 private:
  std::string text(std::size_t most);
  void add_ordinary(std::string_view& bytes, std::vector<std::int32_t>& ids);

  Tokenizer tokenizer_;
  std::mt19937_64 random_;
  std::unordered_map<std::string_view, std::int32_t> ids_;
  std::vector<std::int32_t> specials_;
};

// Two functions, f(s: string, n: integer, o: object, any) and g(), as the chat API declares them.
extern const std::string_view kOutputTools;

}  // namespace hadal::test
