// References followed, and several schemas made one: what JsonSchema needs before it can compile a schema.
#include <algorithm>
#include <charconv>
#include <utility>

#include <fmt/format.h>

#include "text/json_schema.h"
#include "text/schema_values.h"

namespace hadal {
namespace {

using namespace schema_values;

constexpr int kMaxHops = 64;               // of a reference to a reference
constexpr std::size_t kMaxMade = 500'000;  // values in schemas that were made of others

}  // namespace

const JsonValue* JsonSchema::resolve(const std::string& pointer) const {
  if (pointer == "#" || pointer == "#/") return &root_;
  if (!pointer.starts_with("#/")) return nullptr;
  const JsonValue* at = &root_;
  std::string_view rest = std::string_view(pointer).substr(1);
  while (!rest.empty() && at != nullptr) {
    const std::size_t end = std::min(rest.find('/', 1), rest.size());
    std::string key;
    for (std::size_t i = 1; i < end; ++i) {
      const bool escaped = rest[i] == '~' && i + 1 < end && (rest[i + 1] == '0' || rest[i + 1] == '1');
      key += !escaped ? rest[i] : rest[i + 1] == '0' ? '~' : '/';
      if (escaped) ++i;
    }
    if (at->is_array()) {
      std::size_t index = 0;
      const auto read = std::from_chars(key.data(), key.data() + key.size(), index);
      at = read.ec == std::errc() && index < at->items.size() ? &at->items[index] : nullptr;
    } else {
      at = at->find(key);
    }
    rest.remove_prefix(end);
  }
  return at;
}

const JsonValue& JsonSchema::keep(JsonValue schema, const Place& place) {
  made_weight_ += weight(schema);
  if (made_weight_ > kMaxMade && !error_)
    error_.emplace(ErrorCode::resource_exhausted,
                   fmt::format("{}: allOf and its like make too much of it", place.path));
  return made_.emplace_back(std::move(schema));
}

// The keywords of both, as one schema. What cannot be said so is a problem, and the second's is left out.
const JsonValue& JsonSchema::merged(const JsonValue& a, const JsonValue& b, const Place& place) {
  if (is_false(&a) || !b.is_object() || error_) return is_false(&b) ? b : a;
  if (!a.is_object()) return b;
  const JsonValue& first = flat(a, place);
  const JsonValue& second = flat(b, place);
  JsonValue both = first;
  const auto closes = [](const JsonValue& schema, std::string_view name) -> const JsonValue* {
    const JsonValue* properties = schema.find("properties");
    return properties != nullptr && properties->find(name) != nullptr ? nullptr
                                                                      : schema.find("additionalProperties");
  };
  for (const JsonMember& member : second.members) {
    const std::string& key = member.key;
    const JsonValue* present = first.find(key);
    if (key == "properties") continue;
    if (present == nullptr) {
      set(both, key, member.value);
    } else if (key == "required") {
      JsonValue names = *present;
      for (const JsonValue& name : member.value.items)
        if (!requires_member(first, name.text)) names.items.push_back(name);
      set(both, key, std::move(names));
    } else if (key == "type") {
      std::uint8_t types = types_of(first, place) & types_of(second, place);
      JsonValue names = of_kind(JsonValue::Kind::array);
      for (const std::string_view name :
           {"null", "boolean", "number", "integer", "string", "array", "object"}) {
        if (types == 0 || (types & type_named(name)) != type_named(name)) continue;
        types = static_cast<std::uint8_t>(types & ~type_named(name));
        names.items.push_back(of_kind(JsonValue::Kind::string));
        names.items.back().text = name;
      }
      set(both, key, std::move(names));
    } else if (key == "enum" || key == "const") {
      const auto mine = constants_of(first), theirs = constants_of(second);
      JsonValue kept = of_kind(JsonValue::Kind::array);
      for (const JsonValue& value : *mine)
        if (!have_none_in_common({value}, *theirs)) kept.items.push_back(value);
      both = without(without(both, "const"), "enum");
      set(both, "enum", std::move(kept));
    } else if (key == "items") {
      set(both, key, all_of(*present, member.value));
    } else if (key == "additionalProperties") {
      set(both, key,
          is_false(present) || is_false(&member.value) ? is_false(present) ? *present : member.value
                                                       : all_of(*present, member.value));
    } else if (key.starts_with("min") || key.starts_with("max") || key.starts_with("exclusive")) {
      const auto mine = number_of_text(present), theirs = number_of_text(&member.value);
      if (!mine || !theirs) {
        problem(place, key, "cannot be put together with that of allOf");
      } else if (key.starts_with("min") || key == "exclusiveMinimum" ? *theirs > *mine : *theirs < *mine) {
        set(both, key, member.value);
      }
    } else if (is_one_of(key, kKept) && to_python_json(*present) != to_python_json(member.value)) {
      problem(place, key,
              "stands twice, in allOf or beside $ref or anyOf, and the two cannot be put together");
    }
  }
  JsonValue properties = of_kind(JsonValue::Kind::object);
  for (const auto& [mine, theirs] : {std::pair(&first, &second), std::pair(&second, &first)}) {
    const JsonValue* own = mine->find("properties");
    if (own == nullptr) continue;
    const JsonValue* others = theirs->find("properties");
    for (const JsonMember& member : own->members) {
      if (properties.find(member.key) != nullptr) continue;
      const JsonValue* other = others != nullptr ? others->find(member.key) : nullptr;
      if (other == nullptr) other = closes(*theirs, member.key);
      if (is_false(other)) {
        properties.members.push_back({member.key, *other});
      } else {
        properties.members.push_back(
            {member.key, other == nullptr ? member.value : all_of(member.value, *other)});
      }
    }
  }
  if (!properties.members.empty()) set(both, "properties", std::move(properties));
  return keep(std::move(both), place);
}

const JsonValue& JsonSchema::flat(const JsonValue& schema, const Place& place) {
  const JsonValue* at = &schema;
  for (int hops = 0;; ++hops) {
    const JsonValue* reference = at->find("$ref");
    const JsonValue* parts = at->find("allOf");
    if (place.depth + hops > kMaxHops + kMaxDepth || hops > kMaxHops) {
      if (!error_)
        error_.emplace(ErrorCode::unsupported, fmt::format("{}: refers to itself without end", place.path));
      return *at;
    }
    const Place inner{place.path, place.depth + hops + 1};
    if (reference != nullptr && reference->is_string()) {
      const JsonValue* target = resolve(reference->text);
      if (target == nullptr)
        problem(place, "$ref", fmt::format("{} is nowhere in this schema", quoted(reference->text)));
      const JsonValue& rest = keep(without(*at, "$ref"), place);
      if (target == nullptr) {
        at = &rest;
      } else {
        at = asserts(rest, "") ? &merged(*target, rest, inner) : target;
      }
    } else if (parts != nullptr && parts->is_array()) {
      const JsonValue* all = &keep(without(*at, "allOf"), place);
      for (const JsonValue& part : parts->items) all = &merged(*all, part, inner);
      at = all;
    } else {
      return *at;
    }
    if (error_) return *at;
  }
}

std::uint8_t JsonSchema::types_of(const JsonValue& schema, const Place& place) {
  std::uint8_t types = 0;
  const JsonValue* type = schema.find("type");
  const auto add = [&](const JsonValue& name) {
    const std::uint8_t bits = name.is_string() ? type_named(name.text) : 0;
    if (bits == 0) problem(place, "type", "is no type of JSON");
    types |= bits;
  };
  if (type != nullptr && type->is_array()) {
    for (const JsonValue& name : type->items) add(name);
    if (type->items.empty()) return 0;
  } else if (type != nullptr) {
    add(*type);
  } else if (!constants_of(schema)) {
    // Without a type a keyword holds for the documents of its own only; those are meant, as a rule.
    const auto has = [&](std::initializer_list<std::string_view> keys) {
      return std::any_of(keys.begin(), keys.end(), [&](auto key) { return schema.find(key) != nullptr; });
    };
    if (has({"properties", "required", "additionalProperties"})) types |= kObjectType;
    if (has({"items", "prefixItems", "minItems", "maxItems"})) types |= kArrayType;
    if (has({"pattern", "format", "minLength", "maxLength"})) types |= kStringType;
    if (has({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}))
      types |= kNumberType | kIntegerType;
  }
  if (types == 0) types = kAllTypes;
  const JsonValue* nullable = schema.find("nullable");
  if (nullable != nullptr && nullable->boolean) types |= kNullType;
  return types;
}

bool JsonSchema::disjoint(const JsonValue& a, const JsonValue& b, const Place& place) {
  const JsonValue& x = flat(a, place);
  const JsonValue& y = flat(b, place);
  if (!x.is_object() || !y.is_object()) return is_false(&x) || is_false(&y);
  // Of types that are named: a keyword alone is true of all other types.
  const auto named = [&](const JsonValue& schema) {
    if (schema.find("type") != nullptr) return types_of(schema, place);
    std::uint8_t types = 0;
    for (const JsonValue& value : constants_of(schema).value_or(std::vector<JsonValue>{}))
      types |= type_of(value) == kNumberType ? kNumberType | kIntegerType : type_of(value);
    return types == 0 ? std::uint8_t{kAllTypes} : types;
  };
  if ((named(x) & named(y)) == 0) return true;
  const auto xs = constants_of(x), ys = constants_of(y);
  if (xs && ys && have_none_in_common(*xs, *ys)) return true;
  const JsonValue* properties = x.find("properties");
  const JsonValue* others = y.find("properties");
  if (named(x) != kObjectType || named(y) != kObjectType || properties == nullptr || others == nullptr)
    return false;
  return std::any_of(properties->members.begin(), properties->members.end(), [&](const JsonMember& member) {
    const JsonValue* other = others->find(member.key);
    if (other == nullptr || !requires_member(x, member.key) || !requires_member(y, member.key)) return false;
    const auto mine = constants_of(member.value), theirs = constants_of(*other);
    return mine && theirs && have_none_in_common(*mine, *theirs);
  });
}

}  // namespace hadal
