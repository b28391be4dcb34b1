#include <algorithm>
#include <cstddef>
#include <unordered_map>

#include <fmt/format.h>

#include "text/json_value.h"
#include "text/utf8.h"

namespace hadal {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

void append_code_point(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

// Recursive descent; max_depth bounds the stack.
class Parser {
 public:
  Parser(std::string_view text, const JsonParseOptions& options) : text_(text), options_(options) {}

  Result<JsonValue> document() {
    JsonValue value;
    skip_space();
    HADAL_RETURN_IF_ERROR(parse_value(value, 0));
    skip_space();
    if (at_ != text_.size()) return error("unexpected text after the JSON value");
    return value;
  }

 private:
  tl::unexpected<Error> error(std::string_view what) const {
    const std::string_view before = text_.substr(0, at_);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t newline = before.rfind('\n');
    const std::size_t column = newline == std::string_view::npos ? at_ + 1 : at_ - newline;
    return fail(ErrorCode::corrupt, fmt::format("JSON line {}, column {}: {}", line, column, what));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  bool accept(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Status parse_value(JsonValue& value, int depth) {
    if (++n_values_ > options_.max_values)
      return error(fmt::format("more than {} values", options_.max_values));
    switch (peek()) {
      case '{':
        return parse_object(value, depth + 1);
      case '[':
        return parse_array(value, depth + 1);
      case '"':
        value.kind = JsonValue::Kind::string;
        return parse_string(value.text);
      default:
        break;
    }
    if (accept("null")) return {};
    if (accept("true") || accept("false")) {
      value.kind = JsonValue::Kind::boolean;
      value.boolean = text_[at_ - 2] == 'u';  // tr(u)e, fal(s)e
      return {};
    }
    return parse_number(value);
  }

  Status parse_number(JsonValue& value) {
    const std::size_t begin = at_;
    value.kind = JsonValue::Kind::number;
    accept("-");
    if (options_.python_constants && (accept("Infinity") || (at_ == begin && accept("NaN")))) {
      value.text = text_.substr(begin, at_ - begin);
      return {};
    }
    if (!is_digit(peek())) {
      at_ = begin;
      return error("expected a value");
    }
    if (peek() == '0') {
      ++at_;
    } else {
      while (is_digit(peek())) ++at_;
    }
    if (peek() == '.') {
      ++at_;
      if (!is_digit(peek())) return error("expected a digit after the decimal point");
      while (is_digit(peek())) ++at_;
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!is_digit(peek())) return error("expected a digit in the exponent");
      while (is_digit(peek())) ++at_;
    }
    value.text = text_.substr(begin, at_ - begin);
    return {};
  }

  // The four digits of a \u escape.
  Result<std::uint32_t> parse_hex4() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      std::uint32_t digit = 0;
      if (is_digit(c)) {
        digit = static_cast<std::uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<std::uint32_t>(c - 'a' + 10);
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<std::uint32_t>(c - 'A' + 10);
      } else {
        return error("expected four hexadecimal digits after \\u");
      }
      code = code * 16 + digit;
    }
    return code;
  }

  Status parse_unicode_escape(std::string& out) {
    HADAL_ASSIGN_OR_RETURN(std::uint32_t code, parse_hex4());
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      const std::size_t after_high = at_;
      at_ += 2;
      HADAL_ASSIGN_OR_RETURN(const std::uint32_t low, parse_hex4());
      if (low >= 0xDC00 && low < 0xE000) {
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else {
        at_ = after_high;  // not its other half: read it again by itself
      }
    }
    if (code >= 0xD800 && code < 0xE000) code = 0xFFFD;
    append_code_point(out, code);
    return {};
  }

  Status parse_string(std::string& out) {
    ++at_;  // the quote
    for (;;) {
      const std::size_t begin = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
             static_cast<unsigned char>(text_[at_]) >= 0x20) {
        ++at_;
      }
      out.append(text_.substr(begin, at_ - begin));
      if (at_ == text_.size()) return error("the string does not end");
      if (text_[at_] == '"') {
        ++at_;
        return {};
      }
      if (text_[at_] != '\\') return error("a control character must be escaped");
      ++at_;
      const char escape = peek();
      constexpr std::string_view kNames = "\"\\/bfnrt";
      constexpr std::string_view kCharacters = "\"\\/\b\f\n\r\t";
      if (escape == 'u') {
        ++at_;
        HADAL_RETURN_IF_ERROR(parse_unicode_escape(out));
      } else if (const std::size_t which = kNames.find(escape); which != std::string_view::npos) {
        ++at_;
        out += kCharacters[which];
      } else {
        return error("unknown escape in a string");
      }
    }
  }

  Status parse_array(JsonValue& value, int depth) {
    value.kind = JsonValue::Kind::array;
    if (depth > options_.max_depth)
      return error(fmt::format("nested deeper than {} levels", options_.max_depth));
    ++at_;
    skip_space();
    if (accept("]")) return {};
    for (;;) {
      skip_space();
      HADAL_RETURN_IF_ERROR(parse_value(value.items.emplace_back(), depth));
      skip_space();
      if (accept("]")) return {};
      if (!accept(",")) return error("expected ',' or ']'");
    }
  }

  Status parse_object(JsonValue& value, int depth) {
    value.kind = JsonValue::Kind::object;
    if (depth > options_.max_depth)
      return error(fmt::format("nested deeper than {} levels", options_.max_depth));
    std::unordered_map<std::string, std::size_t> index;
    ++at_;
    skip_space();
    if (accept("}")) return {};
    for (;;) {
      skip_space();
      if (peek() != '"') return error("expected a string as key");
      JsonMember member;
      HADAL_RETURN_IF_ERROR(parse_string(member.key));
      skip_space();
      if (!accept(":")) return error("expected ':'");
      skip_space();
      HADAL_RETURN_IF_ERROR(parse_value(member.value, depth));
      const auto [place, is_new] = index.try_emplace(member.key, value.members.size());
      if (is_new) {
        value.members.push_back(std::move(member));
      } else {
        value.members[place->second].value = std::move(member.value);
      }
      skip_space();
      if (accept("}")) return {};
      if (!accept(",")) return error("expected ',' or '}'");
    }
  }

  std::string_view text_;
  JsonParseOptions options_;
  std::size_t at_ = 0;
  std::size_t n_values_ = 0;
};

}  // namespace

Result<JsonValue> parse_json(std::string_view text, const JsonParseOptions& options) {
  if (const std::size_t valid = valid_utf8_prefix(text); valid != text.size()) {
    return fail(ErrorCode::corrupt, fmt::format("JSON byte {}: not valid UTF-8", valid));
  }
  return Parser(text, options).document();
}

}  // namespace hadal
