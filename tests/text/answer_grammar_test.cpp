// Which answers a grammar lets through: schemas and documents, patterns and texts, tools and calls, and what
// is refused by name.
#include "text/answer_grammar.h"

#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "text/code_points.h"
#include "text/grammar_machine.h"
#include "text/regex_grammar.h"
#include "text/string_formats.h"

namespace hadal {
namespace {

// Whether all of the text is an answer. A special token is written `｜DSML｜`.
bool matches(const Grammar& grammar, std::string_view text) {
  GrammarMachine machine(grammar);
  GrammarMachine::StateId state = machine.start();
  constexpr std::string_view kDsml = "｜DSML｜";
  for (std::size_t i = 0; i < text.size();) {
    if (text.substr(i).starts_with(kDsml)) {
      const auto after = machine.step_token(state, 7);
      if (after != GrammarMachine::kDead) {
        state = after;
        i += kDsml.size();
        continue;
      }
    }
    state = machine.step(state, static_cast<std::uint8_t>(text[i++]));
  }
  return machine.accepts(state);
}

Result<Grammar> grammar_of(std::string_view schema, bool strict = true) {
  AnswerRules rules;
  rules.body = AnswerRules::Body::json_schema;
  rules.schema = parse_json(schema).value();
  rules.strict = strict;
  return answer_grammar(rules, dialect_v4(), 7);
}

struct SchemaCase {
  std::string_view schema;
  std::vector<std::string_view> right, wrong;
};

TEST(AnswerGrammarTest, DocumentsOfSchemas) {
  const std::vector<SchemaCase> cases = {
      {"{}",
       {"1", "\"x\"", "[1, {\"a\": null}]", "{}", "-0.5e3", "true"},
       {"", "01", "x", "[1,]", "{a: 1}", "1 "}},
      {R"({"type": "string"})",
       {R"("")", R"("a\n\u00e9\ud83c\udf0d\/")", R"("ü🌍")", R"("</p> <b>")"},
       {"\"a\nb\"", R"("\x")", R"("\ud800")", R"("\udc00x")", "\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "1",
        R"("a)", "\"</think>\"", "\"<｜DSML｜tool_calls>\"", "\"<｜end▁of▁sentence｜>\""}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]})",
       {R"({"a": 1, "b": null})", R"({"b":null})", "{\n  \"a\": -7,\n  \"b\": null\n}"},
       {R"({"a": 1})", "{}", R"({"b": null, "a": 1})", R"({"b": null, "c": 1})", R"({"b": null,})",
        "{\n\n\"b\": null}", R"({ "b" : null})"}},
      {R"({"type": "object", "additionalProperties": {"type": "boolean"}, "properties": {"ab": {"const": 1}}})",
       {"{}", R"({"ab": 1})", R"({"ab": 1, "a": true, "abc": false})", R"({"x": true})", R"({"": true})"},
       {R"({"ab": true})", R"({"a": 1})", R"({"x": true, "ab": 1})", R"({"a\u0062": true})"}},
      {R"({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3})",
       {"[1]", "[1, 2,3]", "[\n 1\n]"},
       {"[]", "[1,2,3,4]", "[1.5]", "[1,,2]"}},
      {R"({"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": {"type": "integer"}})",
       {"[]", R"(["a"])", R"(["a", null])", R"(["a", null, 1, 2])"},
       {"[1]", R"(["a", 1])", R"(["a", null, "b"])"}},
      {R"({"enum": ["a", 1, null, [1, "x"], {"k": 2.50}]})",
       {"\"a\"", "1", "null", "[1, \"x\"]", "{\"k\": 2.5}"},
       {"\"b\"", "2", "[1]"}},
      {R"({"type": ["integer", "null"], "minimum": 3, "exclusiveMaximum": 120})",
       {"3", "9", "10", "99", "100", "119", "null"},
       {"2", "120", "03", "1000", "-5", "3.0"}},
      {R"({"type": "integer", "minimum": -120, "maximum": -7})",
       {"-7", "-120", "-99", "-10"},
       {"-6", "-121", "0", "7"}},
      {R"({"type": "integer", "minimum": -5, "maximum": 5})", {"-5", "0", "5", "-1"}, {"-6", "6", "-0"}},
      {R"({"type": "number", "minimum": 0, "exclusiveMaximum": 1})",
       {"0", "0.25", "0.999"},
       {"1", "1.0", "-0.5", "1e-3"}},
      {R"({"type": "number", "minimum": -2, "maximum": 0})",
       {"-2", "-1.5", "-0.5", "0"},
       {"-2.5", "0.5", "1"}},
      {R"({"type": "string", "minLength": 1, "maxLength": 3})",
       {R"("a")", R"("ü🌍b")", R"("\n\u00e9\ud83c\udf0d")"},
       {R"("")", R"("abcd")"}},
      {R"({"type": "string", "pattern": "^a[b-d]+$"})", {R"("abcd")"}, {R"("a")", R"("xab")"}},
      {R"({"type": "string", "format": "date"})",
       {R"("2026-02-28")", R"("2026-12-31")"},
       {R"("2026-02-30")", R"("26-1-1")"}},
      {R"({"type": "string", "format": "uuid"})",
       {R"("123e4567-e89b-12d3-a456-426614174000")"},
       {R"("123e4567")"}},
      {R"({"anyOf": [{"type": "string", "maxLength": 1}, {"type": "boolean"}]})",
       {"\"a\"", "true"},
       {"\"ab\"", "1"}},
      {R"({"oneOf": [{"type": "object", "properties": {"t": {"const": "x"}}, "required": ["t"]},
                     {"type": "object", "properties": {"t": {"const": "y"}, "n": {"type": "null"}}, "required": ["t"]}]})",
       {R"({"t": "x"})", R"({"t": "y", "n": null})"},
       {R"({"t": "x", "n": null})", "{}"}},
      {R"({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                     {"properties": {"a": {"maximum": 9}, "b": {"type": "null"}}, "required": ["b"]}]})",
       {R"({"a": 1, "b": null})"},
       {R"({"a": 1})", R"({"a": 10, "b": null})"}},
      {R"({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
             "v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["v"]}}})",
       {R"({"v": 1})", R"({"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3}]})"},
       {R"({"kids": []})", R"({"v": 1, "kids": [1]})"}},
      {R"({"type": "object", "properties": {"a/b~": {"type": "null"}}, "required": ["a/b~"]})",
       {R"({"a/b~": null})"},
       {"{}"}},
      {R"({"type": "string", "nullable": true, "description": "d", "default": "x", "x-y": 1})",
       {"null", "\"\""},
       {"1"}},
      {R"({"type": "object"})", {"{}", R"({"a": [1]})"}, {"[]"}},
      {R"({"type": "object", "properties": {}, "additionalProperties": false})",
       {"{}", "{ }"},
       {R"({"a": 1})"}},
  };
  for (const SchemaCase& c : cases) {
    const auto grammar = grammar_of(c.schema);
    ASSERT_TRUE(grammar.has_value()) << c.schema << ": " << grammar.error().message();
    for (const std::string_view text : c.right)
      EXPECT_TRUE(matches(*grammar, text)) << c.schema << " " << text;
    for (const std::string_view text : c.wrong)
      EXPECT_FALSE(matches(*grammar, text)) << c.schema << " " << text;
  }
}

TEST(AnswerGrammarTest, StrictSchemasThatCannotBeKeptAreRefusedByPath) {
  const std::vector<std::pair<std::string_view, std::string_view>> cases = {
      {R"({"not": {"type": "null"}})", "#: not"},
      {R"({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}})",
       "#/properties/a: uniqueItems"},
      {R"({"type": "object", "patternProperties": {"^x": {}}})", "#: patternProperties"},
      {R"({"type": "array", "items": {"type": "string", "pattern": "(?=x)y"}})", "#/items: pattern"},
      {R"({"type": "string", "pattern": "^(a{0,300}){0,300}$"})", "#: pattern"},
      {R"({"type": "string", "pattern": "a", "maxLength": 3})", "#: pattern"},
      {R"({"type": "string", "format": "regex"})", "#: format"},
      {R"({"type": "number", "minimum": 0.5})", "#: minimum"},
      {R"({"type": "integer", "multipleOf": 3})", "#: multipleOf"},
      {R"({"type": "strnig"})", "#: type"},
      {R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", "#: oneOf"},
      {R"({"$ref": "https://example.org/schema"})", "#: $ref"},
      {R"({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"contains": {}}}})",
       "#/$defs/x: contains"},
      {R"({"allOf": [{"$ref": "#"}, {"type": "object"}]})", "without end"},
      {R"({"type": "object", "properties": {"a": false}, "required": ["a"]})", "nothing that is finite"},
      {R"({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "required": ["x"]}}})",
       "nothing that is finite"},
  };
  for (const auto& [schema, what] : cases) {
    const auto grammar = grammar_of(schema);
    ASSERT_FALSE(grammar.has_value()) << schema;
    EXPECT_NE(grammar.error().message().find(what), std::string::npos)
        << schema << ": " << grammar.error().message();
  }
}

TEST(AnswerGrammarTest, WithoutStrictTheShapeIsKept) {
  const auto grammar = grammar_of(R"({"type": "object", "minProperties": 2, "required": ["a"], "properties": {
      "a": {"type": "array", "items": {"type": "string", "pattern": "(?=x)y"}, "uniqueItems": true},
      "b": {"type": "number", "minimum": 0.5}}})",
                                  /*strict=*/false);
  ASSERT_TRUE(grammar.has_value());
  EXPECT_TRUE(matches(*grammar, R"({"a": ["y", "y"], "b": 0})"));
  EXPECT_FALSE(matches(*grammar, R"({"b": 0.7})"));
  EXPECT_FALSE(matches(*grammar, R"({"a": [1]})"));
  // What has no grammar at all is any JSON.
  const auto endless = grammar_of(R"({"allOf": [{"$ref": "#"}]})", /*strict=*/false);
  ASSERT_TRUE(endless.has_value());
  EXPECT_TRUE(matches(*endless, "[1]"));
}

TEST(AnswerGrammarTest, LimitsHold) {
  // Each doubles what the one before it refers to; allOf would write it all out.
  std::string all = R"({"$defs": {"d0": {"type": "object", "properties": {"a": {"type": "null"}}})";
  for (int i = 1; i < 40; ++i)
    all += R"(, "d)" + std::to_string(i) + R"(": {"allOf": [{"$ref": "#/$defs/d)" + std::to_string(i - 1) +
           R"("}, {"$ref": "#/$defs/d)" + std::to_string(i - 1) + "\"}]}";
  EXPECT_FALSE(grammar_of(all + R"(}, "$ref": "#/$defs/d39"})").has_value());
  std::string deep = "{}";
  for (int i = 0; i < 60; ++i) deep.insert(0, R"({"type": "array", "items": )").append("}");
  EXPECT_TRUE(grammar_of(deep).has_value());
  std::string chain = R"({"$defs": {"d0": {"type": "null"})";
  for (int i = 1; i < 400; ++i)
    chain += R"(, "d)" + std::to_string(i) + R"(": {"type": "array", "items": {"$ref": "#/$defs/d)" +
             std::to_string(i - 1) + "\"}}";
  EXPECT_TRUE(grammar_of(chain + R"(}, "$ref": "#/$defs/d399"})").has_value());
  AnswerRules many;
  many.body = AnswerRules::Body::json_object;
  const auto large = answer_grammar(many, dialect_v4(), 7, {.max_exprs = 100});
  ASSERT_FALSE(large.has_value());
  EXPECT_EQ(large.error().code(), ErrorCode::resource_exhausted);
}

struct RegexCase {
  std::string_view pattern;
  std::vector<std::string_view> right, wrong;
};

TEST(AnswerGrammarTest, Patterns) {
  const std::vector<RegexCase> cases = {
      {"^abc$", {"abc"}, {"abcd", "xabc", ""}},
      {"b", {"b", "abc", "ab"}, {"", "ac"}},
      {"^a|b$", {"a", "axx", "xb"}, {"xa", "bx"}},
      {"^(?:ab?|c{2,3})*$", {"", "a", "abab", "cc", "acccab"}, {"c", "acc1", "cccc1"}},
      {"^[a-c\\d_-]+?$", {"a1_-"}, {"d", ""}},
      {"^[^a-c\"]$", {"d", "ü", "\n"}, {"a", "dd", "\""}},
      {"^\\w\\W\\s\\S\\d\\D$", {"a- b1x"}, {"--  1x"}},
      {"^.$", {"ü", "🌍"}, {"\n", "ab"}},
      {"^\\u00e9\\x41\\u{1F30D}\\.\\/$", {"éA🌍./"}, {"eA🌍./"}},
      {"^(a{0}b{1,}){2}$", {"bb", "bbb"}, {"ab", "b"}},
      {"^(((a*)*)*)*$", {"", "aaa"}, {"b"}},
      {"^<b>$", {"<b>"}, {"b"}},
  };
  for (const RegexCase& c : cases) {
    GrammarBuilder builder;
    TextExprs text(builder, Spelling::raw, {"<x>"});
    const auto regex = regex_grammar(c.pattern, builder, text);
    ASSERT_TRUE(regex.has_value()) << c.pattern << ": " << regex.error().message();
    const Grammar grammar = builder.finish(*regex).value();
    for (const std::string_view t : c.right) EXPECT_TRUE(matches(grammar, t)) << c.pattern << " on " << t;
    for (const std::string_view t : c.wrong) EXPECT_FALSE(matches(grammar, t)) << c.pattern << " on " << t;
  }
  for (const std::string_view pattern :
       {"(", ")", "[a", "a{3,2}", "*", "\\", "(?<=a)", "(?!a)", "\\1", "\\p{L}", "a^b", "\\ud800", "[z-a]",
        "a{5000}", "x{", "(((a{40}){40}){40})"}) {
    GrammarBuilder builder;
    TextExprs text(builder, Spelling::raw, {});
    EXPECT_FALSE(regex_grammar(pattern, builder, text).has_value()) << pattern;
  }
}

AnswerRules tool_rules(bool strict, AnswerRules::Body body = AnswerRules::Body::none) {
  AnswerRules rules;
  rules.body = body;
  rules.tools.push_back(
      {"f",
       parse_json(
           R"({"type": "object", "properties": {"q": {"type": "string"}, "n": {"type": ["integer", "string"]},
                      "k": {"enum": ["x", 1]}}, "required": ["q"]})")
           .value(),
       strict});
  rules.tools.push_back({"g", parse_json("{}").value(), false});
  return rules;
}

std::string block(std::string_view calls) {
  return "\n\n<｜DSML｜tool_calls>\n" + std::string(calls) + "\n</｜DSML｜tool_calls>";
}
std::string call(std::string_view name, std::string_view parameters) {
  return "<｜DSML｜invoke name=\"" + std::string(name) + "\">\n" + std::string(parameters) +
         "\n</｜DSML｜invoke>";
}
std::string parameter(std::string_view name, bool string, std::string_view value) {
  return "<｜DSML｜parameter name=\"" + std::string(name) + "\" string=\"" + (string ? "true" : "false") +
         "\">" + std::string(value) + "</｜DSML｜parameter>";
}

TEST(AnswerGrammarTest, Calls) {
  const Grammar grammar = answer_grammar(tool_rules(true), dialect_v4(), 7).value();
  const std::string q = parameter("q", true, "a </b> \"c\"\n<");
  for (const std::string& right :
       {block(call("f", q)), block(call("f", q + "\n" + parameter("n", false, "3"))),
        block(call("f", q + "\n" + parameter("n", true, "three"))),
        block(call("f", q + "\n" + parameter("k", true, "x"))),
        block(call("f", q + "\n" + parameter("k", false, "1"))), block(call("g", "")),
        block(call("g", parameter("any", false, "[1, {\"a\": null}]"))),
        block(call("g", "") + "\n" + call("f", q))}) {
    EXPECT_TRUE(matches(grammar, right)) << right;
  }
  for (const std::string& wrong :
       {std::string("text"), std::string(), block(call("h", q)), block(call("f", "")), block(""),
        block(call("f", parameter("q", false, "3"))),
        block(call("f", q + "\n" + parameter("n", false, "3.5"))),
        block(call("f", q + "\n" + parameter("k", true, "y"))),
        block(call("f", q + "\n" + parameter("z", true, "y"))),
        block(call("f", parameter("n", false, "3") + "\n" + q)), "x" + block(call("f", q)),
        block(call("f", q)) + "x", block(call("f", parameter("q", true, "a</|DSML|parameter>")))}) {
    EXPECT_FALSE(matches(grammar, wrong)) << wrong;
  }
  AnswerRules one = tool_rules(true);
  one.many_calls = false;
  const Grammar single = answer_grammar(one, dialect_v4(), 7).value();
  EXPECT_TRUE(matches(single, block(call("g", ""))));
  EXPECT_FALSE(matches(single, block(call("g", "") + "\n" + call("g", ""))));
}

TEST(AnswerGrammarTest, TextMayComeBeforeCalls) {
  const Grammar grammar = answer_grammar(tool_rules(true, AnswerRules::Body::text), dialect_v4(), 7).value();
  for (const std::string& right :
       {std::string(), std::string("Hello, <b>wörld</b>.\n\n<"), "I look." + block(call("g", ""))})
    EXPECT_TRUE(matches(grammar, right)) << right;
  for (const std::string& wrong :
       {std::string("a </think>"), std::string("<|DSML|tool_calls>"), block(call("h", ""))})
    EXPECT_FALSE(matches(grammar, wrong)) << wrong;
  const Grammar either =
      answer_grammar(tool_rules(true, AnswerRules::Body::json_object), dialect_v4(), 7).value();
  EXPECT_TRUE(matches(either, R"({"a": 1})"));
  EXPECT_TRUE(matches(either, block(call("g", ""))));
  EXPECT_FALSE(matches(either, "Hello"));
}

TEST(AnswerGrammarTest, StrictToolsAreNamedWhenRefused) {
  AnswerRules rules = tool_rules(true);
  rules.tools[0].parameters = parse_json(R"({"type": "object", "properties": {"q": {"not": {}}}})").value();
  const auto refused = answer_grammar(rules, dialect_v4(), 7);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message().find("\"f\""), std::string::npos);
  EXPECT_NE(refused.error().message().find("#/properties/q: not"), std::string::npos)
      << refused.error().message();
  rules.tools[0].strict = false;
  EXPECT_TRUE(answer_grammar(rules, dialect_v4(), 7).has_value());
}

TEST(AnswerGrammarTest, KeysOfRulesTellThemApart) {
  AnswerRules a = tool_rules(true), b = tool_rules(false), c = tool_rules(true);
  c.many_calls = false;
  EXPECT_EQ(a.key(), tool_rules(true).key());
  EXPECT_NE(a.key(), b.key());
  EXPECT_NE(a.key(), c.key());
}

}  // namespace
}  // namespace hadal
