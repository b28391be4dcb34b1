// JSON schemas as expressions of a grammar: every text of the expression is a document that the schema
// accepts. Which keywords there are, and what becomes of the others, is in docs/structured_output.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include <hadal/error.h>

#include "text/json_grammar.h"
#include "text/json_value.h"

namespace hadal {

// The types of JSON, as bits.
enum JsonTypes : std::uint8_t {
  kNullType = 1,
  kBooleanType = 2,
  kIntegerType = 4,
  kNumberType = 8,
  kStringType = 16,
  kArrayType = 32,
  kObjectType = 64,
  kAllTypes = 127,
};

// A schema and the schemas that it refers to.
class JsonSchema {
 public:
  // `root` and `json` must outlive it. Strict: a keyword that cannot be kept is an error. Else it is as if it
  // were not there: the documents have the right shape, but may break that keyword. `raw`: how strings that
  // stand outside of JSON are spelt.
  JsonSchema(const JsonValue& root, bool strict, JsonGrammar& json, TextExprs& raw);

  // Documents of one of these types. In raw spelling the type is kStringType.
  ExprId value(std::uint8_t types = kAllTypes, Spelling spelling = Spelling::json);

  // The members of an object in the order in which they are declared; those that need not come are marked.
  struct Member {
    std::string name;
    JsonValue schema;
    bool required = false;
  };
  // Errors: unsupported (no plain object).
  Result<std::vector<Member>> members();
  ExprId member_value(const Member& member, std::uint8_t types, Spelling spelling);

  // After the last value(): compiles what was referred to. Errors: unsupported, naming the keyword and the
  // path of the schema that has it.
  Status finish();

 private:
  static constexpr int kMaxDepth = 192;  // schemas within schemas
  struct Place {
    std::string path;  // "#/properties/a"
    int depth = 0;
  };
  struct Reference {
    const JsonValue* schema;
    std::string path;
    std::uint8_t types;
    Spelling spelling;
    ExprId expr;
  };

  ExprId compile(const JsonValue& schema, const Place& place, std::uint8_t types, Spelling spelling);
  ExprId refer(const std::string& pointer, const Place& place, std::uint8_t types, Spelling spelling);
  ExprId branches(const JsonValue& schema, std::string_view key, const Place& place, std::uint8_t types,
                  Spelling spelling);
  ExprId constants(const JsonValue& schema, const Place& place, std::uint8_t types, Spelling spelling);
  ExprId string_of(const JsonValue& schema, const Place& place, Spelling spelling);
  ExprId number_of(const JsonValue& schema, const Place& place, bool whole);
  ExprId array_of(const JsonValue& schema, const Place& place);
  ExprId object_of(const JsonValue& schema, const Place& place);

  std::vector<Member> members_of(const JsonValue& schema, const Place& place);
  std::uint8_t types_of(const JsonValue& schema, const Place& place);
  const JsonValue* resolve(const std::string& pointer) const;
  const JsonValue& keep(JsonValue schema, const Place& place);  // in made_
  // One schema for both.
  const JsonValue& merged(const JsonValue& a, const JsonValue& b, const Place& place);
  const JsonValue& flat(const JsonValue& schema, const Place& place);  // without $ref and allOf
  bool disjoint(const JsonValue& a, const JsonValue& b, const Place& place);
  std::optional<std::uint32_t> count(const JsonValue& schema, std::string_view key, const Place& place);
  void problem(const Place& place, std::string_view key, std::string_view what);

  const JsonValue& root_;
  bool strict_;
  JsonGrammar& json_;
  GrammarBuilder& builder_;
  TextExprs& raw_;
  std::map<std::tuple<std::string, std::uint8_t, Spelling>, ExprId> known_;
  std::deque<Reference> pending_;
  std::deque<JsonValue> made_;
  std::size_t made_weight_ = 0;
  std::optional<Error> error_;
};

}  // namespace hadal
