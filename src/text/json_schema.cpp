#include "text/json_schema.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "text/regex_grammar.h"
#include "text/string_formats.h"

namespace hadal {
namespace {

constexpr int kMaxDepth = 192;             // schemas within schemas
constexpr int kMaxHops = 64;               // of a reference to a reference
constexpr std::size_t kMaxMade = 500'000;  // values in schemas that were made of others
constexpr double kLargestBound = 1e18;

// Keywords that say something about a document; all others are remarks.
constexpr std::array kKept = {std::string_view("type"),
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
constexpr std::array kNotKept = {std::string_view("not"),
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
bool is_one_of(std::string_view key, const Names& names) {
  return std::find(names.begin(), names.end(), key) != names.end();
}

bool is_false(const JsonValue* value) {
  return value != nullptr && value->kind == JsonValue::Kind::boolean && !value->boolean;
}

bool asserts(const JsonValue& schema, std::string_view but) {
  return std::any_of(schema.members.begin(), schema.members.end(), [&](const JsonMember& m) {
    return m.key != but && (is_one_of(m.key, kKept) || is_one_of(m.key, kNotKept));
  });
}

JsonValue of_kind(JsonValue::Kind kind) {
  JsonValue value;
  value.kind = kind;
  return value;
}

JsonValue without(const JsonValue& object, std::string_view key) {
  JsonValue rest = of_kind(JsonValue::Kind::object);
  for (const JsonMember& member : object.members) {
    if (member.key != key) rest.members.push_back(member);
  }
  return rest;
}

void set(JsonValue& object, std::string_view key, JsonValue value) {
  for (JsonMember& member : object.members) {
    if (member.key == key) {
      member.value = std::move(value);
      return;
    }
  }
  object.members.push_back({std::string(key), std::move(value)});
}

JsonValue all_of(const JsonValue& a, const JsonValue& b) {
  JsonValue list = of_kind(JsonValue::Kind::array), both = of_kind(JsonValue::Kind::object);
  list.items = {a, b};
  both.members.push_back({"allOf", std::move(list)});
  return both;
}

std::uint8_t type_of(const JsonValue& value) {
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

std::uint8_t type_named(std::string_view name) {
  if (name == "null") return kNullType;
  if (name == "boolean") return kBooleanType;
  if (name == "integer") return kIntegerType;
  if (name == "number") return kNumberType | kIntegerType;
  if (name == "string") return kStringType;
  if (name == "array") return kArrayType;
  if (name == "object") return kObjectType;
  return 0;
}

std::optional<double> number_of_text(const JsonValue* value) {
  if (value == nullptr || value->kind != JsonValue::Kind::number) return std::nullopt;
  double number = 0;
  const char* end = value->text.data() + value->text.size();
  const auto read = std::from_chars(value->text.data(), end, number);
  if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return number;
}

// The values that enum and const leave; nothing where neither stands.
std::optional<std::vector<JsonValue>> constants_of(const JsonValue& schema) {
  if (const JsonValue* one = schema.find("const")) return std::vector<JsonValue>{*one};
  if (const JsonValue* some = schema.find("enum"); some != nullptr && some->is_array()) return some->items;
  return std::nullopt;
}

std::size_t weight(const JsonValue& value) {
  std::size_t total = 1;
  for (const JsonValue& item : value.items) total += weight(item);
  for (const JsonMember& member : value.members) total += weight(member.value);
  return total;
}

bool requires_member(const JsonValue& schema, std::string_view name) {
  const JsonValue* required = schema.find("required");
  return required != nullptr &&
         std::any_of(required->items.begin(), required->items.end(),
                     [&](const JsonValue& r) { return r.is_string() && r.text == name; });
}

bool have_none_in_common(const std::vector<JsonValue>& a, const std::vector<JsonValue>& b) {
  for (const JsonValue& x : a) {
    for (const JsonValue& y : b)
      if (to_python_json(x) == to_python_json(y)) return false;
  }
  return true;
}

}  // namespace

JsonSchema::JsonSchema(const JsonValue& root, bool strict, JsonGrammar& json, TextExprs& raw)
    : root_(root), strict_(strict), json_(json), builder_(json.builder()), raw_(raw) {}

void JsonSchema::problem(const Place& place, std::string_view key, std::string_view what) {
  if (!strict_ || error_) return;
  error_.emplace(ErrorCode::unsupported, fmt::format("{}: {} {}", place.path, key, what));
}

ExprId JsonSchema::value(std::uint8_t types, Spelling spelling) {
  return compile(root_, {"#", 0}, types, spelling);
}

Result<std::vector<JsonSchema::Member>> JsonSchema::members() {
  const Place root{"#", 0};
  const JsonValue& plain = flat(root_, root);
  for (const JsonMember& member : plain.members) {
    const bool fits = member.key == "type" || member.key == "properties" || member.key == "required" ||
                      member.key == "additionalProperties";
    if (!fits && (is_one_of(member.key, kKept) || is_one_of(member.key, kNotKept)))
      problem(root, member.key, "cannot be kept of parameters");
  }
  if ((types_of(plain, root) & kObjectType) == 0) problem(root, "type", "of parameters must be object");
  if (error_) return tl::unexpected(*error_);
  return members_of(plain, root);
}

ExprId JsonSchema::member_value(const Member& member, std::uint8_t types, Spelling spelling) {
  return compile(member.schema, {"#/properties/" + member.name, 1}, types, spelling);
}

Status JsonSchema::finish() {
  while (!pending_.empty()) {
    const Reference next = std::move(pending_.front());
    pending_.pop_front();
    builder_.define(next.expr, compile(*next.schema, {next.path, 0}, next.types, next.spelling));
  }
  if (error_) return tl::unexpected(*error_);
  return {};
}

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

ExprId JsonSchema::refer(const std::string& pointer, const Place& place, std::uint8_t types,
                         Spelling spelling) {
  const auto key = std::tuple(pointer, types, spelling);
  if (const auto known = known_.find(key); known != known_.end()) return known->second;
  const JsonValue* target = resolve(pointer);
  if (target == nullptr) {
    problem(place, "$ref", fmt::format("{} is nowhere in this schema", quoted(pointer)));
    const JsonValue anything = of_kind(JsonValue::Kind::object);
    return compile(anything, place, types, spelling);
  }
  const ExprId expr = builder_.reserve();
  known_.emplace(key, expr);
  pending_.push_back({target, pointer, types, spelling, expr});
  return expr;
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

ExprId JsonSchema::branches(const JsonValue& schema, std::string_view key, const Place& place,
                            std::uint8_t types, Spelling spelling) {
  const JsonValue* list = schema.find(key);
  if (!list->is_array()) {
    problem(place, key, "must be an array of schemas");
    return compile(without(schema, key), place, types, spelling);
  }
  if (key == "oneOf" && strict_) {
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        if (!disjoint(list->items[i], list->items[j], place))
          problem(place, key,
                  fmt::format("has branches {} and {} that one document could be of; use anyOf", j, i));
      }
    }
  }
  const JsonValue rest = without(schema, key);
  const bool alone = !asserts(rest, "");
  std::vector<ExprId> ways;
  for (std::size_t i = 0; i < list->items.size() && !error_; ++i) {
    const Place inner{fmt::format("{}/{}/{}", place.path, key, i), place.depth + 1};
    const JsonValue& branch = list->items[i];
    ways.push_back(compile(alone ? branch : merged(rest, branch, inner), inner, types, spelling));
  }
  return builder_.choice(ways);
}

ExprId JsonSchema::constants(const JsonValue& schema, const Place& place, std::uint8_t types,
                             Spelling spelling) {
  for (const JsonMember& member : schema.members) {
    const bool fits =
        member.key == "type" || member.key == "nullable" || member.key == "enum" || member.key == "const";
    if (!fits && is_one_of(member.key, kKept)) problem(place, member.key, "stands beside enum or const");
  }
  std::vector<ExprId> ways;
  const auto all = constants_of(schema);
  for (const JsonValue& value : *all) {
    if ((type_of(value) & types) == 0) continue;
    ways.push_back(spelling == Spelling::raw ? raw_.literal(value.text)
                                             : builder_.literal(to_python_json(value)));
  }
  return builder_.choice(ways);
}

std::optional<std::uint32_t> JsonSchema::count(const JsonValue& schema, std::string_view key,
                                               const Place& place) {
  const JsonValue* value = schema.find(key);
  if (value == nullptr) return std::nullopt;
  const auto number = number_of_text(value);
  if (!number || *number < 0 || *number != std::floor(*number) || *number > 4e9) {
    problem(place, key, "must be a whole number from 0 to 4000000000");
    return std::nullopt;
  }
  return static_cast<std::uint32_t>(*number);
}

ExprId JsonSchema::string_of(const JsonValue& schema, const Place& place, Spelling spelling) {
  TextExprs& text = spelling == Spelling::raw ? raw_ : json_.characters();
  const auto spelt = [&](ExprId content) {
    return spelling == Spelling::raw ? content : json_.quoted(content);
  };
  const JsonValue* pattern = schema.find("pattern");
  const JsonValue* format = schema.find("format");
  const auto least = count(schema, "minLength", place), most = count(schema, "maxLength", place);
  if ((pattern != nullptr) + (format != nullptr) + (least || most) > 1)
    problem(place, pattern != nullptr ? "pattern" : "format", "stands beside another keyword about the text");
  if (pattern != nullptr) {
    if (pattern->is_string()) {
      const auto regex = regex_grammar(pattern->text, builder_, text);
      if (regex) return spelt(*regex);
      if (regex.error().code() != ErrorCode::resource_exhausted)
        problem(place, "pattern", regex.error().message());
    } else {
      problem(place, "pattern", "must be a string");
    }
  }
  if (format != nullptr) {
    const auto known = format->is_string() ? string_format(format->text) : std::nullopt;
    if (known) {
      const auto regex = regex_grammar(*known, builder_, text);
      if (regex) return spelt(*regex);
    }
    problem(place, "format", "is none that can be kept");
  }
  if (!least && !most) return spelling == Spelling::raw ? text.free_text() : json_.string();
  return spelt(builder_.repeat(text.character(CodePoints::all()), least.value_or(0),
                               most.value_or(Grammar::kUnlimited)));
}

ExprId JsonSchema::number_of(const JsonValue& schema, const Place& place, bool whole) {
  struct Bound {
    std::optional<double> at;
    bool excluded = false;
  } low, high;
  for (const auto& [bound, key, excluding, sign] : {std::tuple(&low, "minimum", "exclusiveMinimum", 1.0),
                                                    std::tuple(&high, "maximum", "exclusiveMaximum", -1.0)}) {
    const JsonValue* outside = schema.find(excluding);
    bound->at = number_of_text(schema.find(key));
    if (schema.find(key) != nullptr && !bound->at) problem(place, key, "must be a number");
    if (outside == nullptr) continue;
    if (outside->kind == JsonValue::Kind::boolean) {  // of draft 4
      bound->excluded = outside->boolean;
    } else if (const auto at = number_of_text(outside)) {
      if (!bound->at || *at * sign >= *bound->at * sign) *bound = {at, true};
    } else {
      problem(place, excluding, "must be a number");
    }
  }
  if (const JsonValue* step = schema.find("multipleOf")) {
    const auto value = number_of_text(step);
    if (!value || *value != 1) problem(place, "multipleOf", "cannot be kept");
    if (value && *value == 1) whole = true;
  }
  if (!low.at && !high.at) return whole ? json_.integer() : json_.number();
  // Whole bounds; others are brought inwards for whole numbers and are a problem for the rest.
  const auto settle = [&](Bound& bound, bool is_low, std::string_view key) -> std::optional<std::int64_t> {
    if (!bound.at) return std::nullopt;
    if (std::abs(*bound.at) >= kLargestBound) {
      if ((*bound.at < 0) != is_low) problem(place, key, "leaves only numbers of more than 18 digits");
      return std::nullopt;
    }
    double at = *bound.at;
    if (at != std::floor(at)) {
      if (!whole) problem(place, key, "of a number must be whole");
      bound.excluded = false;
      at = is_low == whole ? std::ceil(at) : std::floor(at);
    }
    const auto number = static_cast<std::int64_t>(at);
    if (!whole || !bound.excluded) return number;
    return is_low ? number + 1 : number - 1;
  };
  const auto least = settle(low, true, "minimum"), most = settle(high, false, "maximum");
  return whole ? json_.integers(least, most) : json_.numbers(least, low.excluded, most, high.excluded);
}

ExprId JsonSchema::array_of(const JsonValue& schema, const Place& place) {
  const std::uint32_t least = count(schema, "minItems", place).value_or(0);
  const std::uint32_t most = count(schema, "maxItems", place).value_or(Grammar::kUnlimited);
  const JsonValue* items = schema.find("items");
  const JsonValue* prefix = schema.find("prefixItems");
  if (items != nullptr && items->is_array()) std::swap(items, prefix);  // as drafts up to 7 spell it
  if (items != nullptr && items->is_array()) items = nullptr;
  const ExprId others =
      items != nullptr ? compile(*items, {place.path + "/items", place.depth + 1}, kAllTypes, Spelling::json)
                       : json_.value();
  if (prefix == nullptr || !prefix->is_array() || prefix->items.empty())
    return json_.array(others, least, most);
  const auto n = static_cast<std::uint32_t>(prefix->items.size());
  // What may follow n items. Where nothing is said of it, nothing more comes than must.
  const std::uint32_t room = most == Grammar::kUnlimited ? most : most > n ? most - n : 0;
  const std::uint32_t still = least > n ? least - n : 0;
  const ExprId close = builder_.sequence({json_.space(), builder_.byte(']')});
  ExprId tail = builder_.sequence({builder_.repeat(builder_.sequence({json_.comma(), others}), still,
                                                   items != nullptr ? room : std::min(room, still)),
                                   close});
  for (std::uint32_t i = n; i-- > 0;) {
    if (i >= most) {
      tail = close;
      continue;
    }
    const ExprId item =
        compile(prefix->items[i], {fmt::format("{}/prefixItems/{}", place.path, i), place.depth + 1},
                kAllTypes, Spelling::json);
    tail = builder_.sequence({i > 0 ? json_.comma() : json_.space(), item, tail});
    if (i >= least) tail = builder_.choice({tail, close});
  }
  return builder_.sequence({builder_.byte('['), tail});
}

std::vector<JsonSchema::Member> JsonSchema::members_of(const JsonValue& schema, const Place& place) {
  std::vector<Member> members;
  const JsonValue* properties = schema.find("properties");
  if (properties != nullptr && !properties->is_object()) problem(place, "properties", "must be an object");
  if (properties != nullptr) {
    for (const JsonMember& member : properties->members)
      members.push_back({member.key, member.value, requires_member(schema, member.key)});
  }
  const JsonValue* required = schema.find("required");
  const JsonValue* additional = schema.find("additionalProperties");
  for (std::size_t i = 0; required != nullptr && i < required->items.size(); ++i) {
    const std::string& name = required->items[i].text;
    if (std::any_of(members.begin(), members.end(), [&](const Member& m) { return m.name == name; }))
      continue;
    members.push_back({name, additional != nullptr ? *additional : of_kind(JsonValue::Kind::object), true});
  }
  return members;
}

// Members come in the order of the schema, which is where each is told apart: with every member the object
// goes on behind it, and one that is optional may be passed over. Members of other names come last.
ExprId JsonSchema::object_of(const JsonValue& schema, const Place& place) {
  const std::vector<Member> members = members_of(schema, place);
  const JsonValue* additional = schema.find("additionalProperties");
  const bool open = additional != nullptr && !is_false(additional);
  if (members.empty() && (additional == nullptr || (open && !asserts(*additional, ""))))
    return json_.object();
  const ExprId close = builder_.sequence({json_.space(), builder_.byte('}')});
  ExprId first = builder_.byte('}'), later = close;  // what follows no member, and some
  if (open) {
    std::vector<std::string> names;
    for (const Member& member : members) names.push_back(member.name);
    const ExprId other =
        builder_.sequence({json_.quoted(json_.characters().text_other_than(names)), json_.colon(),
                           compile(*additional, {place.path + "/additionalProperties", place.depth + 1},
                                   kAllTypes, Spelling::json)});
    later = builder_.sequence({builder_.repeat(builder_.sequence({json_.comma(), other}), 0), close});
    first = builder_.choice({first, builder_.sequence({other, later})});
  }
  for (std::size_t i = members.size(); i-- > 0 && !error_;) {
    const Member& member = members[i];
    std::string key;
    append_json_string(key, member.name);
    const ExprId pair = builder_.sequence(
        {builder_.literal(key), json_.colon(),
         compile(member.schema, {fmt::format("{}/properties/{}", place.path, member.name), place.depth + 1},
                 kAllTypes, Spelling::json)});
    const ExprId at_first = builder_.sequence({pair, later});
    const ExprId after_others = builder_.sequence({json_.comma(), at_first});
    first = member.required ? at_first : builder_.choice({at_first, first});
    later = member.required ? after_others : builder_.choice({after_others, later});
  }
  return builder_.sequence({builder_.byte('{'), json_.space(), first});
}

ExprId JsonSchema::compile(const JsonValue& schema, const Place& place, std::uint8_t types,
                           Spelling spelling) {
  if (error_ || is_false(&schema)) return Grammar::kNever;
  if (place.depth > kMaxDepth) {
    error_.emplace(ErrorCode::unsupported,
                   fmt::format("{}: more than {} schemas within one another", place.path, kMaxDepth));
    return Grammar::kNever;
  }
  if (const JsonValue* reference = schema.find("$ref"); reference != nullptr) {
    if (reference->is_string() && !asserts(schema, "$ref"))
      return refer(reference->text, place, types, spelling);
  }
  const JsonValue& plain = flat(schema, place);
  if (error_ || is_false(&plain)) return Grammar::kNever;
  for (const JsonMember& member : plain.members) {
    const bool idle =
        member.value.kind == JsonValue::Kind::boolean && !member.value.boolean && member.key == "uniqueItems";
    if (is_one_of(member.key, kNotKept) && !idle) problem(place, member.key, "cannot be kept");
  }
  for (const std::string_view key : {"anyOf", "oneOf"}) {
    if (plain.find(key) != nullptr) return branches(plain, key, place, types, spelling);
  }
  types &= types_of(plain, place);
  if (constants_of(plain)) return constants(plain, place, types, spelling);
  if (spelling == Spelling::raw)
    return (types & kStringType) != 0 ? string_of(plain, place, spelling) : Grammar::kNever;
  if (types == kAllTypes && !asserts(plain, "")) return json_.value();
  std::vector<ExprId> ways;
  if ((types & kObjectType) != 0) ways.push_back(object_of(plain, place));
  if ((types & kArrayType) != 0) ways.push_back(array_of(plain, place));
  if ((types & kStringType) != 0) ways.push_back(string_of(plain, place, spelling));
  if ((types & (kNumberType | kIntegerType)) != 0)
    ways.push_back(number_of(plain, place, (types & kNumberType) == 0));
  if ((types & kBooleanType) != 0) {
    ways.push_back(builder_.literal("true"));
    ways.push_back(builder_.literal("false"));
  }
  if ((types & kNullType) != 0) ways.push_back(builder_.literal("null"));
  return builder_.choice(ways);
}

}  // namespace hadal
