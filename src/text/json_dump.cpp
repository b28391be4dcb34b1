#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "text/json_value.h"
#include "text/utf8.h"

namespace hadal {
namespace {

bool is_integer(std::string_view literal) {
  return literal.find_first_not_of("-0123456789") == std::string_view::npos;
}

// The decimal exponent of the first digit that is not 0 (12.5 has 1, 0.05 has -2), cut off far outside the
// range of a double. Only for literals that from_chars could not represent.
std::int64_t decimal_exponent(std::string_view literal) {
  constexpr std::int64_t kFar = 1'000'000'000'000;
  std::int64_t exponent = 0;
  const std::size_t e = literal.find_first_of("eE");
  if (e != std::string_view::npos) {
    std::string_view digits = literal.substr(e + 1);
    if (digits.front() == '+') digits.remove_prefix(1);
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    if (read.ec != std::errc() || exponent > kFar || exponent < -kFar) {
      exponent = digits.front() == '-' ? -kFar : kFar;
    }
  }
  const std::string_view mantissa = literal.substr(0, e);
  const auto point = static_cast<std::int64_t>(std::min(mantissa.find('.'), mantissa.size()));
  const auto first =
      static_cast<std::int64_t>(std::min(mantissa.find_first_of("123456789"), mantissa.size()));
  return exponent + (first < point ? point - first - 1 : point - first);
}

double to_double(std::string_view literal) {
  double value = 0;
  const auto read = std::from_chars(literal.data(), literal.data() + literal.size(), value);
  if (read.ec != std::errc::result_out_of_range) return value;
  const double magnitude = decimal_exponent(literal) > 0 ? std::numeric_limits<double>::infinity() : 0.0;
  return literal.front() == '-' ? -magnitude : magnitude;
}

// repr(): the shortest digits that read back as the same double; scientific where the decimal exponent is
// below -4 or at least 16.
std::string python_float(double value) {
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  std::array<char, 64> buffer;
  const auto written = std::to_chars(buffer.data(), buffer.data() + buffer.size(), std::abs(value),
                                     std::chars_format::scientific);
  const std::string_view scientific(buffer.data(), static_cast<std::size_t>(written.ptr - buffer.data()));
  const std::size_t e = scientific.find('e');
  int exponent = 0;
  const std::string_view exponent_digits = scientific.substr(e + (scientific[e + 1] == '+' ? 2 : 1));
  std::from_chars(exponent_digits.data(), exponent_digits.data() + exponent_digits.size(), exponent);
  std::string digits(1, scientific[0]);
  if (e > 1) digits += scientific.substr(2, e - 2);  // past the point

  std::string out = std::signbit(value) ? "-" : "";
  const auto places = static_cast<std::size_t>(std::abs(exponent));
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (digits.size() > 1) out.append(".").append(digits, 1);
    out += fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', places);
  } else if (exponent < 0) {
    out.append("0.").append(places - 1, '0').append(digits);
  } else if (digits.size() <= places + 1) {
    out.append(digits).append(places + 1 - digits.size(), '0').append(".0");
  } else {
    out.append(digits, 0, places + 1).append(".").append(digits, places + 1);
  }
  return out;
}

void dump(std::string& out, const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::null:
      out += "null";
      return;
    case JsonValue::Kind::boolean:
      out += value.boolean ? "true" : "false";
      return;
    case JsonValue::Kind::number:
      out += python_number(value.text);
      return;
    case JsonValue::Kind::string:
      append_json_string(out, value.text);
      return;
    case JsonValue::Kind::array:
      out += '[';
      for (const JsonValue& item : value.items) {
        if (&item != value.items.data()) out += ", ";
        dump(out, item);
      }
      out += ']';
      return;
    case JsonValue::Kind::object:
      out += '{';
      for (const JsonMember& member : value.members) {
        if (&member != value.members.data()) out += ", ";
        append_json_string(out, member.key);
        out += ": ";
        dump(out, member.value);
      }
      out += '}';
      return;
  }
}

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  for (const JsonMember& member : members) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

bool JsonValue::truthy() const {
  switch (kind) {
    case Kind::null:
      return false;
    case Kind::boolean:
      return boolean;
    case Kind::number:
      return text == "NaN" || is_integer(text) ? text.find_first_not_of("-0") != std::string::npos
                                               : to_double(text) != 0;
    case Kind::string:
      return !text.empty();
    case Kind::array:
      return !items.empty();
    case Kind::object:
      return !members.empty();
  }
  return false;
}

std::string python_number(std::string_view literal) {
  if (literal == "NaN" || literal.ends_with("Infinity")) return std::string(literal);
  if (is_integer(literal)) return literal == "-0" ? "0" : std::string(literal);
  return python_float(to_double(literal));
}

void append_json_escaped(std::string& out, std::string_view text) {
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  append_json_escaped(out, text);
  out += '"';
}

std::string quoted(std::string_view text) {
  constexpr std::size_t kMost = 80;
  std::string out;
  append_json_string(out, text.substr(0, valid_utf8_prefix(text.substr(0, kMost))));
  return text.size() > kMost ? out + "..." : out;
}

std::string to_python_json(const JsonValue& value) {
  std::string out;
  dump(out, value);
  return out;
}

}  // namespace hadal
