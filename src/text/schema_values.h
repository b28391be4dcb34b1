// Schemas as JSON values: what their keywords are, and small questions about them.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/json_schema.h"
#include "text/json_value.h"

namespace hadal::schema_values {

// Keywords that say something about a document; all others are remarks.
inline constexpr std::array kKept = {std::string_view("type"),
                                     std::string_view("nullable"),
                                     std::string_view("enum"),
                                     std::string_view("const"),
                                     std::string_view("properties"),
                                     std::string_view("required"),
                                     std::string_view("additionalProperties"),
                                     std::string_view("items"),
                                     std::string_view("prefixItems"),
                                     std::string_view("minItems"),
                                     std::string_view("maxItems"),
                                     std::string_view("pattern"),
                                     std::string_view("format"),
                                     std::string_view("minLength"),
                                     std::string_view("maxLength"),
                                     std::string_view("minimum"),
                                     std::string_view("maximum"),
                                     std::string_view("exclusiveMinimum"),
                                     std::string_view("exclusiveMaximum"),
                                     std::string_view("multipleOf"),
                                     std::string_view("anyOf"),
                                     std::string_view("oneOf"),
                                     std::string_view("allOf"),
                                     std::string_view("$ref")};
inline constexpr std::array kNotKept = {std::string_view("not"),
                                        std::string_view("if"),
                                        std::string_view("then"),
                                        std::string_view("else"),
                                        std::string_view("patternProperties"),
                                        std::string_view("propertyNames"),
                                        std::string_view("minProperties"),
                                        std::string_view("maxProperties"),
                                        std::string_view("dependentRequired"),
                                        std::string_view("dependentSchemas"),
                                        std::string_view("dependencies"),
                                        std::string_view("unevaluatedProperties"),
                                        std::string_view("uniqueItems"),
                                        std::string_view("contains"),
                                        std::string_view("minContains"),
                                        std::string_view("maxContains"),
                                        std::string_view("additionalItems"),
                                        std::string_view("unevaluatedItems"),
                                        std::string_view("$dynamicRef"),
                                        std::string_view("$recursiveRef")};

template <class Names>
inline bool is_one_of(std::string_view key, const Names& names) {
  return std::find(names.begin(), names.end(), key) != names.end();
}

inline bool is_false(const JsonValue* value) {
  return value != nullptr && value->kind == JsonValue::Kind::boolean && !value->boolean;
}

inline bool asserts(const JsonValue& schema, std::string_view but) {
  return std::any_of(schema.members.begin(), schema.members.end(), [&](const JsonMember& m) {
    return m.key != but && (is_one_of(m.key, kKept) || is_one_of(m.key, kNotKept));
  });
}

inline JsonValue of_kind(JsonValue::Kind kind) {
  JsonValue value;
  value.kind = kind;
  return value;
}

inline JsonValue without(const JsonValue& object, std::string_view key) {
  JsonValue rest = of_kind(JsonValue::Kind::object);
  for (const JsonMember& member : object.members) {
    if (member.key != key) rest.members.push_back(member);
  }
  return rest;
}

inline void set(JsonValue& object, std::string_view key, JsonValue value) {
  for (JsonMember& member : object.members) {
    if (member.key == key) {
      member.value = std::move(value);
      return;
    }
  }
  object.members.push_back({std::string(key), std::move(value)});
}

inline JsonValue all_of(const JsonValue& a, const JsonValue& b) {
  JsonValue list = of_kind(JsonValue::Kind::array), both = of_kind(JsonValue::Kind::object);
  list.items = {a, b};
  both.members.push_back({"allOf", std::move(list)});
  return both;
}

inline std::uint8_t type_of(const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::null:
      return kNullType;
    case JsonValue::Kind::boolean:
      return kBooleanType;
    case JsonValue::Kind::number:
      return value.text.find_first_of(".eE") == std::string::npos ? kIntegerType : kNumberType;
    case JsonValue::Kind::string:
      return kStringType;
    case JsonValue::Kind::array:
      return kArrayType;
    case JsonValue::Kind::object:
      return kObjectType;
  }
  return 0;
}

inline std::uint8_t type_named(std::string_view name) {
  if (name == "null") return kNullType;
  if (name == "boolean") return kBooleanType;
  if (name == "integer") return kIntegerType;
  if (name == "number") return kNumberType | kIntegerType;
  if (name == "string") return kStringType;
  if (name == "array") return kArrayType;
  if (name == "object") return kObjectType;
  return 0;
}

inline std::optional<double> number_of_text(const JsonValue* value) {
  if (value == nullptr || value->kind != JsonValue::Kind::number) return std::nullopt;
  double number = 0;
  const char* end = value->text.data() + value->text.size();
  const auto read = std::from_chars(value->text.data(), end, number);
  if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return number;
}

// The values that enum and const leave; nothing where neither stands.
inline std::optional<std::vector<JsonValue>> constants_of(const JsonValue& schema) {
  if (const JsonValue* one = schema.find("const")) return std::vector<JsonValue>{*one};
  if (const JsonValue* some = schema.find("enum"); some != nullptr && some->is_array()) return some->items;
  return std::nullopt;
}

inline std::size_t weight(const JsonValue& value) {
  std::size_t total = 1;
  for (const JsonValue& item : value.items) total += weight(item);
  for (const JsonMember& member : value.members) total += weight(member.value);
  return total;
}

inline bool requires_member(const JsonValue& schema, std::string_view name) {
  const JsonValue* required = schema.find("required");
  return required != nullptr &&
         std::any_of(required->items.begin(), required->items.end(),
                     [&](const JsonValue& r) { return r.is_string() && r.text == name; });
}

inline bool have_none_in_common(const std::vector<JsonValue>& a, const std::vector<JsonValue>& b) {
  for (const JsonValue& x : a) {
    for (const JsonValue& y : b)
      if (to_python_json(x) == to_python_json(y)) return false;
  }
  return true;
}

}  // namespace hadal::schema_values
