// Masks of tokens: they are exactly the tokens that the grammar takes, near limits and after the matcher has
// moved.
#include "text/grammar_matcher.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "text/grammar_cache.h"
#include "text/random_answer.h"

namespace hadal {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer loaded =
      Tokenizer::load(HADAL_TEST_DATA "/../../models/nano/tokenizer.json").value();
  return loaded;
}

std::shared_ptr<CompiledGrammar> compiled(std::string_view schema,
                                          AnswerRules::Body body = AnswerRules::Body::json_schema) {
  static GrammarCache cache(tokenizer(), dialect_v4());
  AnswerRules rules;
  rules.body = body;
  rules.schema = parse_json(schema).value();
  rules.strict = true;
  return cache.get(rules).value();
}

bool has(const TokenSet& set, std::int32_t id) {
  return (set[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1) != 0;
}

void check_mask(GrammarMatcher& matcher, const std::string& where) {
  TokenSet allowed;
  matcher.allowed(allowed);
  std::size_t wrong = 0;
  for (std::int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
    GrammarMatcher copy = matcher;
    const bool takes =
        copy.accept(id, tokenizer().is_added(id) ? std::string_view() : tokenizer().token_bytes(id));
    if (takes != has(allowed, id) && ++wrong < 5)
      ADD_FAILURE() << where << ": token " << id << " " << tokenizer().token_bytes(id);
  }
  ASSERT_EQ(wrong, 0U) << where;
}

TEST(GrammarMatcherTest, MasksAreTheTokensThatFit) {
  constexpr std::pair<std::string_view, std::string_view> kCases[] = {
      {R"({"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer", "maximum": 120}},
           "required": ["name", "n"]})",
       "{\"name\": \"a <b> \\\" \\u00e9 ü\",\n  \"n\": 11}"},
      {R"({"type": "array", "items": {"type": "string", "maxLength": 4, "minLength": 2}})",
       R"(["ab", "üü\n ", "abcd"])"},
      {R"({"type": "array", "items": {"type": "string", "pattern": "^(ab|c)*d$"}})", R"(["ababd", "ccd"])"},
      {R"({"type": "object", "additionalProperties": {}})", R"({"key": {"a": [1.5e3, "x"]}, "b": "x"})"},
  };
  for (const auto& [schema, document] : kCases) {
    GrammarMatcher matcher(compiled(schema));
    std::string read;
    check_mask(matcher, read);
    for (const char c : document) {
      ASSERT_TRUE(matcher.accept_text(std::string_view(&c, 1))) << read << c;
      read += c;
      check_mask(matcher, read);
    }
    EXPECT_TRUE(matcher.can_end()) << document;
  }
}

TEST(GrammarMatcherTest, SpecialTokensComeWhereTheGrammarHasThem) {
  AnswerRules rules;
  rules.tools.push_back(
      {"f", parse_json(R"({"type": "object", "properties": {"q": {"type": "string"}}})").value(), true});
  GrammarCache cache(tokenizer(), dialect_v4());
  GrammarMatcher matcher(cache.get(rules).value());
  const std::int32_t dsml = tokenizer().id_of("｜DSML｜").value();
  TokenSet allowed;
  for (const std::string_view text :
       {"\n\n<", "tool_calls>\n<", "invoke name=\"f\">\n<", "parameter name=\"q\" string=\"true\">any <",
        "text\n</", "parameter>\n</", "invoke>\n</", "tool_calls>"}) {
    for (const char c : text) {
      matcher.allowed(allowed);
      EXPECT_EQ(has(allowed, dsml), text == "invoke>\n</" && c == '/') << text;
      ASSERT_TRUE(matcher.accept_text(std::string_view(&c, 1))) << text;
    }
    check_mask(matcher, std::string(text));
    matcher.allowed(allowed);
    const bool inside = text.ends_with("any <"), end = text == "tool_calls>";
    EXPECT_EQ(has(allowed, dsml), !inside && !end) << text;
    EXPECT_EQ(matcher.can_end(), end) << text;
    EXPECT_TRUE(inside || end || matcher.accept(dsml, ""));
  }
}

TEST(GrammarMatcherTest, AStringCostsOneWalkWhateverItsLength) {
  const auto grammar = compiled(R"({"type": "array", "items": {"type": "string", "maxLength": 5000}})");
  GrammarMatcher matcher(grammar);
  TokenSet allowed;
  ASSERT_TRUE(matcher.accept_text("[\""));
  matcher.allowed(allowed);
  const TokenSet first = allowed;
  const std::size_t kept = grammar->masks_kept();
  EXPECT_GT(kept, 0U);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(matcher.accept_text("word "));
    if (i % 10 == 9) {
      ASSERT_TRUE(matcher.accept_text("\",\n  \""));
    }
    matcher.allowed(allowed);
    EXPECT_EQ(allowed, first);
  }
  EXPECT_EQ(grammar->masks_kept(), kept);
}

// Nothing of what a grammar remembers may show in a mask, or answers would depend on other answers.
TEST(GrammarMatcherTest, MovesIntoANewSpaceUnchanged) {
  AnswerRules rules;
  rules.body = AnswerRules::Body::json_schema;
  rules.schema =
      parse_json(R"({"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 6000})")
          .value();
  const Grammar grammar = answer_grammar(rules, dialect_v4(), std::nullopt).value();
  const auto trie = std::make_shared<const TokenTrie>(tokenizer());
  const auto compiled_small = std::make_shared<CompiledGrammar>(grammar, trie, /*max_bytes=*/100'000);
  GrammarMatcher matcher(compiled_small), fresh(std::make_shared<CompiledGrammar>(grammar, trie));
  TokenSet a, b;
  ASSERT_TRUE(matcher.accept_text("[\"x\"") && fresh.accept_text("[\"x\""));
  std::size_t most_kept = 0, drops = 0, kept = 0;
  for (int i = 0; i < 60; ++i) {
    for (const std::string_view next : {", \"abc", "def", "\""}) {
      ASSERT_TRUE(matcher.accept_text(next) && fresh.accept_text(next));
      matcher.allowed(a);
      fresh.allowed(b);
      EXPECT_EQ(a, b) << i << next;
      drops += compiled_small->masks_kept() < kept ? 1 : 0;
      kept = compiled_small->masks_kept();
      most_kept = std::max(most_kept, kept);
    }
  }
  EXPECT_GT(most_kept, 0U);
  EXPECT_GT(drops, 0U);
}

// Masks of what would be too much work are those of single bytes: always something, and in bounded time.
TEST(GrammarMatcherTest, AmbiguousPatternsAreBounded) {
  const auto grammar = compiled(R"({"type": "string", "pattern": "^(.?.?.?.?x?[a-z]{0,9}){0,130}$"})");
  GrammarMatcher matcher(grammar);
  ASSERT_TRUE(matcher.accept_text("\""));
  TokenSet allowed;
  for (int i = 0; i < 4; ++i) {
    matcher.allowed(allowed);
    EXPECT_TRUE(has(allowed, tokenizer().id_of("a").value()));
    ASSERT_TRUE(matcher.accept_text("a"));
  }
}

TEST(GrammarMatcherTest, RandomAnswersEnd) {
  test::RandomAnswer model(
      compiled(R"({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9},
      "b": {"type": "array", "items": {"enum": ["x", "y"]}}}, "required": ["a", "b"]})"),
      tokenizer());
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const auto text = model.write(seed, 2000);
    ASSERT_TRUE(text.has_value());
    EXPECT_TRUE(parse_json(*text).has_value()) << *text;
  }
}

TEST(GrammarCacheTest, KeepsWhatWasUsedLast) {
  GrammarCache cache(tokenizer(), dialect_v4(), /*capacity=*/2);
  const auto get = [&](std::string_view schema) {
    AnswerRules rules;
    rules.body = AnswerRules::Body::json_schema;
    rules.schema = parse_json(schema).value();
    return cache.get(rules).value();
  };
  const auto a = get(R"({"type": "null"})");
  const auto b = get(R"({"type": "string"})");
  EXPECT_EQ(get(R"({"type": "null"})"), a);
  get(R"({"type": "integer"})");
  EXPECT_EQ(get(R"({"type": "null"})"), a);
  EXPECT_NE(get(R"({"type": "string"})"), b);
}

}  // namespace
}  // namespace hadal
