#include "text/pattern.h"

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include <fmt/format.h>

#include "text/utf8.h"

namespace hadal {
namespace {

struct Range {
  std::uint32_t first;
  std::uint32_t last;
};

// What Unicode 15.0, 15.1 and 16.0 added to Unicode 14, by general category. (No character of Unicode 14
// changed its major category.)
constexpr int kUnicodeVersion = 16;
constexpr Range kAddedL[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D4A, 0x10D65},
    {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x1123F, 0x11240}, {0x11380, 0x11389}, {0x1138B, 0x1138B},
    {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7}, {0x113D1, 0x113D1}, {0x113D3, 0x113D3},
    {0x11BC0, 0x11BE0}, {0x11F02, 0x11F02}, {0x11F04, 0x11F10}, {0x11F12, 0x11F33}, {0x1342F, 0x1342F},
    {0x13441, 0x13446}, {0x13460, 0x143FA}, {0x16100, 0x1611D}, {0x16D40, 0x16D6C}, {0x18CFF, 0x18CFF},
    {0x1B132, 0x1B132}, {0x1B155, 0x1B155}, {0x1DF25, 0x1DF2A}, {0x1E030, 0x1E06D}, {0x1E4D0, 0x1E4EB},
    {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0}, {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}};
constexpr Range kAddedM[] = {{0x897, 0x897},     {0xCF3, 0xCF3},     {0xECE, 0xECE},     {0x10D69, 0x10D6D},
                             {0x10EFC, 0x10EFF}, {0x11241, 0x11241}, {0x113B8, 0x113C0}, {0x113C2, 0x113C2},
                             {0x113C5, 0x113C5}, {0x113C7, 0x113CA}, {0x113CC, 0x113D0}, {0x113D2, 0x113D2},
                             {0x113E1, 0x113E2}, {0x11F00, 0x11F01}, {0x11F03, 0x11F03}, {0x11F34, 0x11F3A},
                             {0x11F3E, 0x11F42}, {0x11F5A, 0x11F5A}, {0x13440, 0x13440}, {0x13447, 0x13455},
                             {0x1611E, 0x1612F}, {0x1E08F, 0x1E08F}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF}};
constexpr Range kAddedN[] = {{0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x11F50, 0x11F59},
                             {0x16130, 0x16139}, {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1D2C0, 0x1D2D3},
                             {0x1E4F0, 0x1E4F9}, {0x1E5F1, 0x1E5FA}};
constexpr Range kAddedP[] = {{0x1B4E, 0x1B4F},   {0x1B7F, 0x1B7F},   {0x10D6E, 0x10D6E}, {0x113D4, 0x113D5},
                             {0x113D7, 0x113D8}, {0x11B00, 0x11B09}, {0x11BE1, 0x11BE1}, {0x11F43, 0x11F4F},
                             {0x16D6D, 0x16D6F}, {0x1E5FF, 0x1E5FF}};
constexpr Range kAddedS[] = {
    {0x2427, 0x2429},   {0x2FFC, 0x2FFF},   {0x31E4, 0x31E5},   {0x31EF, 0x31EF},   {0x10D8E, 0x10D8F},
    {0x1CC00, 0x1CCEF}, {0x1CD00, 0x1CEB3}, {0x1F6DC, 0x1F6DC}, {0x1F774, 0x1F776}, {0x1F77B, 0x1F77F},
    {0x1F7D9, 0x1F7D9}, {0x1F8B2, 0x1F8BB}, {0x1F8C0, 0x1F8C1}, {0x1FA75, 0x1FA77}, {0x1FA87, 0x1FA89},
    {0x1FA8F, 0x1FA8F}, {0x1FAAD, 0x1FAAF}, {0x1FABB, 0x1FABF}, {0x1FAC6, 0x1FAC6}, {0x1FACE, 0x1FACF},
    {0x1FADA, 0x1FADC}, {0x1FADF, 0x1FADF}, {0x1FAE8, 0x1FAE9}, {0x1FAF7, 0x1FAF8}, {0x1FBCB, 0x1FBEF}};

constexpr std::string_view kCategories = "LMNPSZ";

std::span<const Range> added_to_category(char letter) {
  switch (letter) {
    case 'L':
      return kAddedL;
    case 'M':
      return kAddedM;
    case 'N':
      return kAddedN;
    case 'P':
      return kAddedP;
    case 'S':
      return kAddedS;
    default:
      return {};
  }
}

// \s, \p{X}, or their complements.
struct Shorthand {
  char category;  // 0: white space
  bool negated;
};

class Translator {
 public:
  Translator(std::string_view pattern, int unicode_version)
      : in_(pattern), unicode_version_(unicode_version) {}

  Result<std::string> run() {
    if (!is_valid_utf8(in_)) return refuse("text that is not UTF-8");
    while (at_ < in_.size()) HADAL_RETURN_IF_ERROR(term());
    if (depth_ != 0) return refuse("a group that is never closed");
    return std::move(out_);
  }

 private:
  static constexpr int kMaxDepth = 16;
  static constexpr int kMaxRepeat = 1000;

  tl::unexpected<Error> refuse(std::string_view what) const {
    return fail(ErrorCode::unsupported,
                fmt::format("the pattern has {} at byte {}, which hadal does not translate", what, at_));
  }

  char peek(std::size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool starts(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  bool take(std::string_view text) {
    if (!starts(text)) return false;
    at_ += text.size();
    return true;
  }

  // One alternation bar, parenthesis, or atom with its quantifier.
  Status term() {
    if (take("|")) {
      out_ += '|';
      return {};
    }
    for (const std::string_view opening : {"(?:", "(?=", "(?!"}) {
      if (!take(opening)) continue;
      if (++depth_ > kMaxDepth) return refuse("groups nested too deep");
      out_ += opening;
      return {};
    }
    if (starts(")")) {
      if (depth_-- == 0) return refuse("an unmatched ')'");
      ++at_;
      out_ += ')';
      if (is_one_of(peek(), "?*+{")) return refuse("a quantifier on a group");
      return {};
    }
    if (is_one_of(peek(), "(^$.?*+{")) return refuse(fmt::format("an unescaped '{}'", peek()));
    if (peek() == '[') {
      HADAL_RETURN_IF_ERROR(character_class());
    } else if (peek() == '\\') {
      HADAL_ASSIGN_OR_RETURN(const std::optional<Shorthand> shorthand, escape());
      if (shorthand) shorthand_outside_class(*shorthand);
    } else {
      literal();
    }
    return quantifier();
  }

  static bool is_one_of(char c, std::string_view set) {
    return c != '\0' && set.find(c) != std::string_view::npos;
  }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  // One character for itself.
  void literal() {
    const std::size_t length = utf8_lead(in_.substr(at_)).length;
    emit_literal(in_.substr(at_, length));
    at_ += length;
  }

  void emit_literal(std::string_view character) {
    const auto c = static_cast<std::uint8_t>(character[0]);
    const bool alphanumeric = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    if (c < 0x21 || c == 0x7F) {
      out_ += fmt::format("\\x{{{:x}}}", c);
    } else {
      if (c < 0x80 && !alphanumeric && !is_digit(character[0])) out_ += '\\';
      out_ += character;
    }
  }

  // At a backslash: a shorthand, or nullopt after writing out a literal.
  Result<std::optional<Shorthand>> escape() {
    const char c = peek(1);
    switch (c) {
      case 'r':
      case 'n':
      case 't':
        at_ += 2;
        out_ += '\\';
        out_ += c;
        return std::nullopt;
      case 's':
      case 'S':
        at_ += 2;
        return Shorthand{0, c == 'S'};
      case 'p':
      case 'P': {
        const char category = peek(3);
        if (peek(2) != '{' || !is_one_of(category, kCategories) || peek(4) != '}') {
          return refuse("a property other than L, M, N, P, S and Z");
        }
        at_ += 5;
        return Shorthand{category, c == 'P'};
      }
      default:
        break;
    }
    if (!is_one_of(c, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")) return refuse("an escape");
    at_ += 2;
    emit_literal(std::string_view(&c, 1));
    return std::nullopt;
  }

  void emit_category(char letter) {
    out_ += fmt::format("\\p{{{}}}", letter);
    if (unicode_version_ >= kUnicodeVersion) return;
    for (const Range& range : added_to_category(letter)) {
      out_ += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", range.first, range.last);
    }
  }

  void shorthand_outside_class(const Shorthand& shorthand) {
    if (shorthand.category == 0) {
      out_ += shorthand.negated ? "\\P{White_Space}" : "\\p{White_Space}";
    } else {
      out_ += shorthand.negated ? "[^" : "[";
      emit_category(shorthand.category);
      out_ += ']';
    }
  }

  // [...] or [^...] of literals, ranges of literals, and positive shorthands.
  Status character_class() {
    ++at_;
    out_ += '[';
    if (take("^")) out_ += '^';
    if (peek() == ']') return refuse("an empty class");
    bool range_may_follow = false;  // after a literal that does not itself end a range
    for (;;) {
      if (take("]")) break;
      if (peek() == '[' || starts("&&")) return refuse("a class within a class");
      if (peek() == '-') {
        if (!range_may_follow || is_one_of(peek(1), "]-[")) return refuse("a '-' that is not of a range a-b");
        ++at_;
        out_ += '-';
        HADAL_ASSIGN_OR_RETURN(const bool is_literal, class_item());
        if (!is_literal) return refuse("a range that ends in a shorthand");
        range_may_follow = false;
        continue;
      }
      HADAL_ASSIGN_OR_RETURN(range_may_follow, class_item());
    }
    out_ += ']';
    return {};
  }

  // True for a literal, false for a shorthand.
  Result<bool> class_item() {
    if (at_ == in_.size()) return refuse("a class that is never closed");
    if (peek() != '\\') {
      literal();
      return true;
    }
    HADAL_ASSIGN_OR_RETURN(const std::optional<Shorthand> shorthand, escape());
    if (!shorthand) return true;
    if (shorthand->negated) return refuse("a negated shorthand in a class");
    if (shorthand->category == 0) {
      out_ += "\\p{White_Space}";
    } else {
      emit_category(shorthand->category);
    }
    return false;
  }

  // ? * + with an optional lazy or possessive mark, or {n}, {n,}, {n,m}.
  Status quantifier() {
    if (is_one_of(peek(), "?*+")) {
      out_ += in_[at_++];
      if (is_one_of(peek(), "?+")) out_ += in_[at_++];
    } else if (peek() == '{') {
      ++at_;
      HADAL_ASSIGN_OR_RETURN(const int low, number());
      out_ += fmt::format("{{{}", low);
      if (take(",")) {
        out_ += ',';
        if (peek() != '}') {
          HADAL_ASSIGN_OR_RETURN(const int high, number());
          if (high < low) return refuse("an empty range of repeats");
          out_ += fmt::format("{}", high);
        }
      }
      if (!take("}")) return refuse("a malformed quantifier");
      out_ += '}';
    }
    if (is_one_of(peek(), "?*+{")) return refuse("a quantifier on a quantifier");
    return {};
  }

  Result<int> number() {
    if (!is_digit(peek())) return refuse("a malformed quantifier");
    int value = 0;
    while (is_digit(peek())) {
      value = value * 10 + (in_[at_++] - '0');
      if (value > kMaxRepeat) return refuse("a repeat count above 1000");
    }
    return value;
  }

  std::string_view in_;
  int unicode_version_;
  std::size_t at_ = 0;
  int depth_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> translate_pattern(std::string_view oniguruma, int unicode_version) {
  return Translator(oniguruma, unicode_version).run();
}

}  // namespace hadal
