#include "text/regex_grammar.h"

#include <algorithm>
#include <optional>
#include <vector>

#include <fmt/format.h>

namespace hadal {
namespace {

constexpr int kMaxGroups = 64;  // open at once
constexpr std::uint32_t kMaxCount = 100'000;

CodePoints ascii_word() {
  CodePoints set('0', '9');
  set.add('A', 'Z');
  set.add('_', '_');
  set.add('a', 'z');
  return set;
}

CodePoints ascii_space() {
  CodePoints set(9, 13);
  set.add(' ', ' ');
  return set;
}

// Beyond ASCII the dialects differ in what is a digit, a word character or a space: \D, \W and \S are here
// what is certainly none.
CodePoints beyond_doubt(const CodePoints& excluded, bool other_scripts) {
  CodePoints set = CodePoints(0, 0x7F).without(excluded);
  if (other_scripts) set.add(CodePoints(0x3041, 0x3096));  // hiragana: letters, no spaces, no digits
  return set;
}

CodePoints line_ends() {
  CodePoints set('\n', '\n');
  set.add('\r', '\r');
  set.add(0x2028, 0x2029);
  return set;
}

// What has been read, and how many characters it has with its repetitions written out.
struct Piece {
  ExprId expr = Grammar::kEmpty;
  std::size_t size = 0;
};

class RegexReader {
 public:
  RegexReader(std::string_view pattern, GrammarBuilder& builder, TextExprs& text)
      : pattern_(code_points_of(pattern)), builder_(builder), text_(text) {}

  Result<ExprId> read() {
    const Piece piece = alternatives(/*outermost=*/true);
    if (!error_ && at_ < pattern_.size()) stop(ErrorCode::invalid_argument, "a ) closes nothing");
    if (!error_ && piece.size > kMaxRegexSize)
      stop(ErrorCode::unsupported, fmt::format("it has more than {} characters written out", kMaxRegexSize));
    if (error_) return tl::unexpected(*error_);
    return piece.expr;
  }

 private:
  bool more() const { return !error_ && at_ < pattern_.size(); }
  char32_t peek() const { return at_ < pattern_.size() ? pattern_[at_] : 0; }
  bool take(char32_t c) {
    if (!more() || peek() != c) return false;
    ++at_;
    return true;
  }
  void stop(ErrorCode code, std::string_view what) {
    if (!error_) error_.emplace(code, fmt::format("pattern, at character {}: {}", at_, what));
  }

  Piece alternatives(bool outermost) {
    std::vector<ExprId> all;
    std::size_t size = 0;
    do {
      const Piece piece = alternative(outermost);
      all.push_back(piece.expr);
      size += piece.size;
    } while (take('|'));
    return {builder_.choice(all), size};
  }

  // The anchors count at its ends, and only where the ends are those of the whole pattern; an end without one
  // lets any text stand there.
  Piece alternative(bool outermost) {
    const bool begins = outermost && take('^');
    Piece all;
    bool ends = false;
    while (more() && peek() != '|' && peek() != ')') {
      if (outermost && peek() == '$' && (at_ + 1 == pattern_.size() || pattern_[at_ + 1] == '|')) {
        ++at_;
        ends = true;
        break;
      }
      const Piece next = repeated();
      all.expr = builder_.sequence({all.expr, next.expr});
      all.size += next.size;
    }
    if (outermost && !begins) all.expr = builder_.sequence({anything(), all.expr});
    if (outermost && !ends) all.expr = builder_.sequence({all.expr, anything()});
    return all;
  }

  ExprId anything() { return builder_.repeat(text_.character(CodePoints::all()), 0); }

  Piece repeated() {
    Piece piece = atom();
    while (more()) {
      std::uint32_t least = 0, most = Grammar::kUnlimited;
      if (take('*')) {
      } else if (take('+')) {
        least = 1;
      } else if (take('?')) {
        most = 1;
      } else if (peek() != '{' || !counts(least, most)) {
        break;
      }
      take('?');  // lazy: the same texts
      const std::size_t times = std::max<std::size_t>(1, most == Grammar::kUnlimited ? least : most);
      piece.size = std::min(piece.size * times, kMaxRegexSize * 2);
      if (piece.size > kMaxRegexSize)
        stop(ErrorCode::unsupported,
             fmt::format("it has more than {} characters written out", kMaxRegexSize));
      piece.expr = builder_.repeat(piece.expr, least, most);
    }
    return piece;
  }

  std::optional<std::uint32_t> number() {
    if (peek() < '0' || peek() > '9') return std::nullopt;
    std::uint32_t value = 0;
    while (peek() >= '0' && peek() <= '9') value = std::min(kMaxCount, value * 10 + (pattern_[at_++] - '0'));
    return value;
  }

  bool counts(std::uint32_t& least, std::uint32_t& most) {
    const std::size_t begin = at_++;
    const auto first = number();
    if (first) {
      least = most = *first;
      if (take(',')) most = number().value_or(Grammar::kUnlimited);
      if (take('}')) {
        if (least > most) stop(ErrorCode::invalid_argument, "the counts are in the wrong order");
        return true;
      }
    }
    at_ = begin;
    stop(ErrorCode::unsupported, "a { that is no count must be escaped");
    return false;
  }

  Piece atom() {
    const char32_t c = pattern_[at_];
    if (c == '(') return group();
    if (c == '*' || c == '+' || c == '?') {
      stop(ErrorCode::invalid_argument, "nothing to repeat");
      return {};
    }
    if (c == '^' || c == '$') {
      stop(ErrorCode::unsupported, "^ and $ may only stand at the ends of the pattern");
      return {};
    }
    ++at_;
    if (c == '.') return one_of(CodePoints::all().without(line_ends()));
    if (c == '[') return one_of(set());
    if (c == '\\') return one_of(escape(/*in_set=*/false));
    // Characters that stand for themselves, also those that are avoided: the pattern asks for them.
    return {text_.literal(utf8_of(c)), 1};
  }

  Piece one_of(const CodePoints& set) {
    if (set.ranges().size() == 1 && set.ranges()[0].first == set.ranges()[0].second)
      return {text_.literal(utf8_of(set.ranges()[0].first)), 1};
    return {text_.character(set), 1};
  }

  static std::string utf8_of(char32_t c) {
    std::string text;
    append_utf8(text, c);
    return text;
  }

  Piece group() {
    ++at_;
    if (take('?')) {
      if (take('<')) {
        if (peek() == '=' || peek() == '!') stop(ErrorCode::unsupported, "look-behind");
        while (more() && !take('>')) ++at_;
      } else if (!take(':')) {
        stop(ErrorCode::unsupported, "look-ahead and flags");
      }
    }
    if (++open_ > kMaxGroups) stop(ErrorCode::unsupported, "too many groups in one another");
    if (error_) return {};
    const Piece piece = alternatives(/*outermost=*/false);
    --open_;
    if (!take(')')) stop(ErrorCode::invalid_argument, "a ( is not closed");
    return piece;
  }

  CodePoints set() {
    const bool negated = take('^');
    CodePoints all;
    bool closed = false;
    while (more() && !(closed = take(']'))) {
      const CodePoints from = member();
      if (peek() == '-' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']') {
        ++at_;
        const CodePoints to = member();
        if (!single(from) || !single(to) || from.ranges()[0].first > to.ranges()[0].first) {
          stop(ErrorCode::invalid_argument, "a range must go from one character to a later one");
          return {};
        }
        all.add(from.ranges()[0].first, to.ranges()[0].first);
      } else {
        all.add(from);
      }
    }
    if (!closed) stop(ErrorCode::invalid_argument, "a [ is not closed");
    return negated ? CodePoints::all().without(all) : all;
  }

  static bool single(const CodePoints& set) {
    return set.ranges().size() == 1 && set.ranges()[0].first == set.ranges()[0].second;
  }

  CodePoints member() {
    if (!more()) return {};
    const char32_t c = pattern_[at_++];
    return c == '\\' ? escape(/*in_set=*/true) : CodePoints(c, c);
  }

  CodePoints escape(bool in_set) {
    if (!more()) {
      stop(ErrorCode::invalid_argument, "it ends with a backslash");
      return {};
    }
    const char32_t c = pattern_[at_++];
    switch (c) {
      case 'd':
        return {'0', '9'};
      case 'w':
        return ascii_word();
      case 's':
        return ascii_space();
      case 'D':
        return beyond_doubt({'0', '9'}, true);
      case 'W':
        return beyond_doubt(ascii_word(), false);
      case 'S': {
        CodePoints spaces = ascii_space();
        spaces.add(0x1C, 0x1F);
        return beyond_doubt(spaces, true);
      }
      case 't':
        return {'\t', '\t'};
      case 'n':
        return {'\n', '\n'};
      case 'r':
        return {'\r', '\r'};
      case 'f':
        return {'\f', '\f'};
      case 'v':
        return {'\v', '\v'};
      case '0':
        return {0, 0};
      case 'x':
        return hex(2);
      case 'u':
        return hex(4);
      default:
        break;
    }
    if (c == 'b' && in_set) return {8, 8};
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      stop(ErrorCode::unsupported, "this escape");
      return {};
    }
    return {c, c};
  }

  CodePoints hex(int digits) {
    const bool braces = digits == 4 && take('{');
    char32_t value = 0;
    int n = 0;
    for (; more() && n < (braces ? 6 : digits); ++n) {
      const char32_t c = peek();
      const bool digit = c >= '0' && c <= '9';
      const char32_t letter = c | 0x20;
      if (!digit && (letter < 'a' || letter > 'f')) break;
      value = value * 16 + (digit ? c - '0' : letter - 'a' + 10);
      ++at_;
    }
    CodePoints set(value, value);
    if (n == 0 || (braces ? !take('}') : n < digits) || value > 0x10FFFF || set.empty())
      stop(ErrorCode::invalid_argument, "not the number of a character");
    return set;
  }

  std::u32string pattern_;
  std::size_t at_ = 0;
  int open_ = 0;
  std::optional<Error> error_;
  GrammarBuilder& builder_;
  TextExprs& text_;
};

}  // namespace

Result<ExprId> regex_grammar(std::string_view pattern, GrammarBuilder& builder, TextExprs& text) {
  return RegexReader(pattern, builder, text).read();
}

}  // namespace hadal
