#include "text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/pattern.h"
#include "tokenizer_fixture.h"

namespace hadal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> split(const std::vector<std::string>& patterns, std::string_view text) {
  const auto pre_tokenizer = PreTokenizer::create(patterns);
  if (!pre_tokenizer) {
    ADD_FAILURE() << pre_tokenizer.error().message();
    return {};
  }
  PreTokenizer::Scratch scratch(*pre_tokenizer);
  std::vector<std::string> pieces;
  const Status status =
      pre_tokenizer->split(text, scratch, [&](std::string_view p) { pieces.emplace_back(p); });
  EXPECT_TRUE(status);
  return pieces;
}

std::vector<std::string> deepseek(std::string_view text) {
  return split(deepseek_patterns(), text);
}

// What the `tokenizers` library gives for the same texts.
TEST(PreTokenizer, SplitsAsDeepSeekDoes) {
  EXPECT_THAT(deepseek(""), ElementsAre());
  EXPECT_THAT(deepseek("Hello, world!"), ElementsAre("Hello", ",", " world", "!"));
  EXPECT_THAT(deepseek("12345678"), ElementsAre("123", "456", "78"));
  EXPECT_THAT(deepseek("in 2024, x1"), ElementsAre("in", " ", "202", "4", ",", " x", "1"));
  EXPECT_THAT(deepseek("你好，世界ok"), ElementsAre("你好", "，", "世界", "ok"));
  EXPECT_THAT(deepseek("カタカナー。ひらがな"), ElementsAre("カタカナー", "。", "ひらがな"));
  EXPECT_THAT(deepseek("don't"), ElementsAre("don", "'t"));
  EXPECT_THAT(deepseek("a  b   c"), ElementsAre("a", " ", " b", "  ", " c"));
  EXPECT_THAT(deepseek("end  "), ElementsAre("end", "  "));
  EXPECT_THAT(deepseek("x \n\n  y"), ElementsAre("x", " \n\n", " ", " y"));
  EXPECT_THAT(deepseek("{\n  \"k\": 1}\r\n"), ElementsAre("{\n", " ", " \"", "k", "\":", " ", "1", "}\r\n"));
  EXPECT_THAT(deepseek("#include <a.h>"), ElementsAre("#include", " <", "a", ".h", ">"));
  EXPECT_THAT(deepseek("e\u0301a"), ElementsAre("e\u0301a"));
  EXPECT_THAT(deepseek("👍🏽 ok"), ElementsAre("👍🏽", " ok"));
}

TEST(PreTokenizer, WhiteSpaceIsUnicodes) {
  // U+180E is no white space (PCRE2's own \s has it), U+0085 and U+3000 are.
  EXPECT_THAT(split({"\\s+"}, "a\u180Eb\u0085\u3000c"), ElementsAre("a\u180Eb", "\u0085\u3000", "c"));
  EXPECT_THAT(split({"\\S+"}, "a\u180Eb\u0085c"), ElementsAre("a\u180Eb", "\u0085", "c"));
}

TEST(PreTokenizer, KnowsCharactersOfUnicode16) {
  EXPECT_THAT(split({"\\p{S}"}, "a🫨🫩b"), ElementsAre("a", "🫨", "🫩", "b"));  // 15.0, 16.0
  EXPECT_THAT(split({"[\\p{L}]+"}, "1\U0002EBF0\U00016D40"), ElementsAre("1", "\U0002EBF0\U00016D40"));
  EXPECT_THAT(split({"\\P{N}"}, "\U00016D70\U00016D71"), ElementsAre("\U00016D70\U00016D71"));
}

TEST(PreTokenizer, EachPatternSeesOnlyItsPiece) {
  // The second pattern meets "a " on its own, so that nothing follows its space.
  EXPECT_THAT(split({"b", "\\s(?!b)"}, "a b"), ElementsAre("a", " ", "b"));
  EXPECT_THAT(split({"\\s(?!b)"}, "a b"), ElementsAre("a b"));
  EXPECT_THAT(split({}, "a b"), ElementsAre("a b"));
}

TEST(PreTokenizer, LongRunsDoNotExhaustIt) {
  const std::string spaces(12'000'000, ' ');  // beyond PCRE2's default match limit of 10'000'000
  const auto pieces = deepseek(spaces + "x");
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].size(), spaces.size() - 1);
  EXPECT_EQ(deepseek(std::string(1'000'000, 'a')).size(), 1u);
  EXPECT_EQ(deepseek(std::string(300'000, '1')).size(), 100'000u);
}

TEST(PreTokenizer, GivesUpOnAPatternThatBacktracksTooMuch) {
  const auto pre_tokenizer = PreTokenizer::create(std::vector<std::string>{"\\s*\\s*\\s*\\s*x"});
  ASSERT_TRUE(pre_tokenizer);
  PreTokenizer::Scratch scratch(*pre_tokenizer);
  // The last x keeps PCRE2 from seeing at once that there is none.
  const Status status = pre_tokenizer->split(std::string(3000, ' ') + "yx", scratch, [](std::string_view) {});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::resource_exhausted);
  EXPECT_THAT(status.error().message(),
              HasSubstr("Split pattern 0 gave up on the text: match limit exceeded"));
}

TEST(Pattern, TranslatesToPcre2) {
  const auto translated = [](std::string_view pattern) { return translate_pattern(pattern, 16).value(); };
  EXPECT_EQ(translated("\\p{N}{1,3}"), "[\\p{N}]{1,3}");
  EXPECT_EQ(translated("\\P{L}*"), "[^\\p{L}]*");
  EXPECT_EQ(translated("\\s+(?!\\S)|\\s"), "\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}");
  EXPECT_EQ(translated("[^\r\n\\p{L}a-c\\-]?"), "[^\\x{d}\\x{a}\\p{L}a-c\\-]?");
  EXPECT_EQ(translated("(?:a|#b)"), "(?:a|\\#b)");
  EXPECT_EQ(translated("[一-龥]+"), "[一-龥]+");
  EXPECT_EQ(translated("a++b*?"), "a++b*?");
  EXPECT_THAT(translate_pattern("\\p{N}", 15).value(), HasSubstr("\\x{16d70}-\\x{16d79}"));
}

TEST(Pattern, RefusesWhatTheDialectsReadDifferently) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"(a)", "an unescaped '('"},
      {"(?i:a)", "an unescaped '('"},
      {"(?<=a)b", "an unescaped '('"},
      {"a.b", "an unescaped '.'"},
      {"^a", "an unescaped '^'"},
      {"a$", "an unescaped '$'"},
      {"*a", "an unescaped '*'"},
      {"(?:a)+", "a quantifier on a group"},
      {"(?:a", "a group that is never closed"},
      {"a)", "an unmatched ')'"},
      {"\\h", "an escape"},
      {"\\d", "an escape"},
      {"\\w", "an escape"},
      {"\\", "an escape"},
      {"\\x{41}", "an escape"},
      {"\\p{Han}", "a property other than"},
      {"\\pL", "a property other than"},
      {"\\p{^L}", "a property other than"},
      {"[[:alpha:]]", "a class within a class"},
      {"[a&&b]", "a class within a class"},
      {"[]a]", "an empty class"},
      {"[a", "a class that is never closed"},
      {"[a-", "a class that is never closed"},
      {"[", "a class that is never closed"},
      {"[^", "a class that is never closed"},
      {"[-a]", "a '-' that is not of a range"},
      {"[a-]", "a '-' that is not of a range"},
      {"[a-b-c]", "a '-' that is not of a range"},
      {"[a-\\s]", "a range that ends in a shorthand"},
      {"[\\s-a]", "a '-' that is not of a range"},
      {"[\\S]", "a negated shorthand in a class"},
      {"[\\P{L}]", "a negated shorthand in a class"},
      {"a{2}{3}", "a quantifier on a quantifier"},
      {"a{2}+", "a quantifier on a quantifier"},
      {"a+++", "a quantifier on a quantifier"},
      {"a{,3}", "a malformed quantifier"},
      {"a{3", "a malformed quantifier"},
      {"a{3,2}", "an empty range of repeats"},
      {"a{1001}", "a repeat count above 1000"},
      {"\xFF", "text that is not UTF-8"},
  };
  for (const auto& [pattern, why] : cases) {
    const auto translated = translate_pattern(pattern, 14);
    ASSERT_FALSE(translated) << pattern << " became " << *translated;
    EXPECT_EQ(translated.error().code(), ErrorCode::unsupported);
    EXPECT_THAT(translated.error().message(), HasSubstr(why)) << pattern;
  }
}

TEST(PreTokenizer, RefusesByTheNumberOfThePattern) {
  const auto message = [](const std::vector<std::string>& patterns) {
    const auto pre_tokenizer = PreTokenizer::create(patterns);
    return pre_tokenizer ? "accepted" : pre_tokenizer.error().message();
  };
  EXPECT_THAT(message({"a", "b*"}), HasSubstr("Split pattern 1: it matches the empty string"));
  EXPECT_THAT(message({""}), HasSubstr("Split pattern 0: it matches the empty string"));
  EXPECT_THAT(message({"[z-a]"}),
              HasSubstr("Split pattern 0: PCRE2 does not compile it: range out of order"));
  EXPECT_THAT(message({"\\w"}), HasSubstr("Split pattern 0: the pattern has an escape at byte 0"));
  EXPECT_THAT(message(std::vector<std::string>(17, "a")),
              HasSubstr("17 Split patterns, hadal takes at most 16"));
}

}  // namespace
}  // namespace hadal
