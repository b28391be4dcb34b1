#include "text/json_schema.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "text/regex_grammar.h"
#include "text/schema_values.h"
#include "text/string_formats.h"

namespace hadal {
namespace {

using namespace schema_values;

constexpr double kLargestBound = 1e18;

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
    names.reserve(members.size());
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
