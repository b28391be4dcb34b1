// Sets of characters, and how a character is spelt where the model writes it: as UTF-8, or with JSON's
// escapes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/grammar.h"

namespace hadal {

// Unicode scalar values: surrogates are in no set.
class CodePoints {
 public:
  CodePoints() = default;
  CodePoints(char32_t first, char32_t last) { add(first, last); }
  static CodePoints all() { return {0, kLast}; }

  void add(char32_t first, char32_t last);
  void add(const CodePoints& other);
  CodePoints without(const CodePoints& other) const;

  bool contains(char32_t c) const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<std::pair<char32_t, char32_t>>& ranges() const { return ranges_; }

 private:
  static constexpr char32_t kLast = 0x10FFFF;
  std::vector<std::pair<char32_t, char32_t>> ranges_;  // ascending, apart
};

void append_utf8(std::string& out, char32_t c);
std::u32string code_points_of(std::string_view utf8);  // U+FFFD for what is not UTF-8

enum class Spelling : std::uint8_t {
  raw,   // UTF-8 as it is
  json,  // within the quotes of a JSON string
};

// Makes expressions of characters that are spelt in one way. Markup that the reader of the output would take
// for its own (`avoided`) is in none of them but those of literal().
class TextExprs {
 public:
  TextExprs(GrammarBuilder& builder, Spelling spelling, const std::vector<std::string>& avoided);

  Spelling spelling() const { return spelling_; }
  // One of the set. A character that begins something avoided is left out, or escaped where there are
  // escapes.
  ExprId character(const CodePoints& set);
  // The text itself, whatever it holds.
  ExprId literal(std::string_view utf8);
  // Any text in which nothing avoided occurs.
  ExprId free_text();
  // Any text of characters() that is none of these.
  ExprId text_other_than(const std::vector<std::string>& texts);

 private:
  CodePoints must_be_escaped() const;
  ExprId any_escape();
  ExprId utf8(const CodePoints& set);

  GrammarBuilder& builder_;
  Spelling spelling_;
  std::vector<std::u32string> avoided_;
  CodePoints beginnings_;  // of what is avoided
  ExprId free_text_ = Grammar::kNever;
};

}  // namespace hadal
