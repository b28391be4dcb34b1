#include "serve/fields.h"

#include <charconv>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace hadal::serve {

std::optional<double> to_number(const JsonValue& value) {
  if (value.kind != JsonValue::Kind::number) return std::nullopt;
  double number = 0;
  const auto read = std::from_chars(value.text.data(), value.text.data() + value.text.size(), number);
  if (read.ec != std::errc() || !std::isfinite(number)) return std::nullopt;
  return number;
}

std::optional<std::int64_t> to_integer(const JsonValue& value) {
  constexpr double kMost = 9007199254740992.0;  // 2^53
  const auto number = to_number(value);
  if (!number || *number != std::trunc(*number) || std::abs(*number) > kMost) return std::nullopt;
  return static_cast<std::int64_t>(*number);
}

Json to_json(const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::null:
      return nullptr;
    case JsonValue::Kind::boolean:
      return value.boolean;
    case JsonValue::Kind::number: {
      const char* end = value.text.data() + value.text.size();
      std::int64_t whole = 0;
      if (const auto read = std::from_chars(value.text.data(), end, whole);
          read.ec == std::errc() && read.ptr == end)
        return whole;
      if (const auto number = to_number(value)) return *number;
      const double most = std::numeric_limits<double>::max();
      // Too small for a double is out of range too.
      const std::size_t exponent = value.text.find_first_of("eE");
      if (exponent != std::string::npos && value.text.find('-', exponent) != std::string::npos) return 0.0;
      return value.text.starts_with('-') ? -most : most;
    }
    case JsonValue::Kind::string:
      return value.text;
    case JsonValue::Kind::array: {
      Json array = Json::array();
      for (const JsonValue& item : value.items) array.push_back(to_json(item));
      return array;
    }
    case JsonValue::Kind::object: {
      Json object = Json::object();
      for (const JsonMember& member : value.members) object[member.key] = to_json(member.value);
      return object;
    }
  }
  return nullptr;
}

std::string Fields::name(std::string_view key) const {
  if (path_.empty()) return std::string(key);
  return key.empty() ? path_ : path_ + "." + std::string(key);
}

void Fields::fail(std::string_view key, std::string_view what) {
  if (error_) return;
  const std::string field = name(key);
  error_ = invalid(fmt::format("{} {}", field.empty() ? "the request" : field, what), field);
}

bool Fields::boolean(std::string_view key, bool otherwise) {
  const JsonValue* value = get(key);
  if (value == nullptr) return otherwise;
  if (value->kind != JsonValue::Kind::boolean) fail(key, "must be true or false");
  return value->boolean;
}

std::int64_t Fields::integer(std::string_view key, std::int64_t otherwise, std::int64_t least,
                             std::int64_t most) {
  const JsonValue* value = get(key);
  if (value == nullptr) return otherwise;
  const auto number = to_integer(*value);
  if (number && *number >= least && *number <= most) return *number;
  fail(key, fmt::format("must be an integer from {} to {}", least, most));
  return otherwise;
}

double Fields::number(std::string_view key, double otherwise, double least, double most) {
  const JsonValue* value = get(key);
  if (value == nullptr) return otherwise;
  const auto number = to_number(*value);
  if (number && *number >= least && *number <= most) return *number;
  fail(key, fmt::format("must be a number from {} to {}", least, most));
  return otherwise;
}

std::string Fields::string(std::string_view key, std::string otherwise) {
  const JsonValue* value = get(key);
  if (value == nullptr) return otherwise;
  if (!value->is_string()) fail(key, "must be a string");
  return value->text;
}

const JsonValue* Fields::array(std::string_view key, std::size_t most) {
  const JsonValue* value = get(key);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) {
    fail(key, "must be an array");
  } else if (value->items.size() > most) {
    fail(key, fmt::format("has {} items; the most are {}", value->items.size(), most));
  } else {
    return value;
  }
  return nullptr;
}

const JsonValue* Fields::object(std::string_view key) {
  const JsonValue* value = get(key);
  if (value == nullptr || value->is_object()) return value;
  fail(key, "must be an object");
  return nullptr;
}

}  // namespace hadal::serve
