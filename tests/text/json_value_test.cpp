#include "text/json_value.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace hadal {
namespace {

using testing::HasSubstr;

std::string round_trip(std::string_view text) {
  const auto json = parse_json(text, {.python_constants = true});
  return json ? to_python_json(*json) : json.error().message();
}

TEST(JsonValue, PrintsAsPythonDoes) {
  // json.dumps(json.loads(left), ensure_ascii=False) == right, by Python 3.11.
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"( { "b" :1,"a":[ 1 ,2,{"x":"y"} ] , "c":{} } )", R"({"b": 1, "a": [1, 2, {"x": "y"}], "c": {}})"},
      {R"(["é", "\u00e9", "\ud83d\ude00", "\/", "\"", "\\"])", R"(["é", "é", "😀", "/", "\"", "\\"])"},
      {R"("\b\f\n\r\t\u0001\u001f\u007f\u2028")", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7F\u2028\""},
      {R"({"a": 1, "b": 2, "a": "three"})", R"({"a": "three", "b": 2})"},
      {R"([true, false, null])", R"([true, false, null])"},
      {R"([NaN, Infinity, -Infinity])", R"([NaN, Infinity, -Infinity])"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(round_trip(text), expected) << text;
}

TEST(JsonValue, PrintsNumbersAsPythonDoes) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"0", "0"},
      {"-0", "0"},
      {"-0.0", "-0.0"},
      {"0.0", "0.0"},
      {"100.0", "100.0"},
      {"1.10", "1.1"},
      {"1E5", "100000.0"},
      {"1e15", "1000000000000000.0"},
      {"1e16", "1e+16"},
      {"1e22", "1e+22"},
      {"123456789012345.6", "123456789012345.6"},
      {"1234567890123456.7", "1234567890123456.8"},
      {"9007199254740993.0", "9007199254740992.0"},
      {"100000000000000000.0", "1e+17"},
      {"123456789.123456789", "123456789.12345679"},
      {"0.1", "0.1"},
      {"0.30000000000000004", "0.30000000000000004"},
      {"0.0001", "0.0001"},
      {"0.00001", "1e-05"},
      {"2.5e-7", "2.5e-07"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"5e-324", "5e-324"},
      {"1e400", "Infinity"},
      {"-1e400", "-Infinity"},
      {"1e-400", "0.0"},
      {"-1e-400", "-0.0"},
      {"1" + std::string(400, '0') + ".0e-1", "Infinity"},
      {"0." + std::string(400, '0') + "1", "0.0"},
      {"1e99999999999999999999", "Infinity"},
      {"1e-9223372036854775808", "0.0"},
      {"12345678901234567890123", "12345678901234567890123"},
      {"-98765432109876543210", "-98765432109876543210"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(round_trip(text), expected) << text;
}

TEST(JsonValue, LoneSurrogatesBecomeReplacementCharacters) {
  EXPECT_EQ(round_trip(R"("a\ud800b")"), "\"a\uFFFDb\"");
  EXPECT_EQ(round_trip(R"("\udc00")"), "\"\uFFFD\"");
  EXPECT_EQ(round_trip(R"("\ud800\ud83d\ude00")"), "\"\uFFFD😀\"");
  EXPECT_EQ(round_trip(R"("\ud800\u0041")"), "\"\uFFFDA\"");
}

TEST(JsonValue, RefusesWhatIsNotJson) {
  const std::vector<std::string> cases = {
      "",
      "{",
      "[1,]",
      "{\"a\"}",
      "{\"a\":1,}",
      "{a:1}",
      "'a'",
      "01",
      "1.",
      ".5",
      "+1",
      "1e",
      "-",
      "\"a",
      "\"\n\"",
      "\"\\x\"",
      "\"\\u12g4\"",
      "tru",
      "1 2",
      "\xEF\xBB\xBF{}",
      "[1 2]",
      "{\"a\" 1}",
      "nul",
      "\"\\ud800\\u12\"",
  };
  for (const std::string& text : cases) EXPECT_FALSE(parse_json(text, {.python_constants = true})) << text;
  EXPECT_FALSE(parse_json("NaN"));
  EXPECT_FALSE(parse_json("-Infinity"));
  EXPECT_FALSE(parse_json("-NaN", {.python_constants = true}));
}

TEST(JsonValue, ErrorsSayWhere) {
  EXPECT_EQ(parse_json("{\n  \"a\": ?}").error().message(), "JSON line 2, column 8: expected a value");
  EXPECT_EQ(parse_json("[\"ab\xFF\"]").error().message(), "JSON byte 4: not valid UTF-8");
  EXPECT_EQ(parse_json("[1").error().code(), ErrorCode::corrupt);
}

TEST(JsonValue, DepthIsLimited) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(parse_json(nested(128)));
  EXPECT_THAT(parse_json(nested(129)).error().message(), HasSubstr("deeper than 128"));
  EXPECT_FALSE(parse_json(std::string(1'000'000, '[')));
  EXPECT_FALSE(parse_json(nested(3), {.max_depth = 2}));
}

TEST(JsonValue, TheNumberOfValuesIsLimited) {
  EXPECT_TRUE(parse_json("[1, [2]]", {.max_values = 4}));
  EXPECT_THAT(parse_json("[1, [2]]", {.max_values = 3}).error().message(), HasSubstr("more than 3 values"));
}

TEST(JsonValue, ManyMembersAreReadInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += "\"key" + std::to_string(i) + "\": 1, ";
  text += "\"key7\": 2}";
  const auto json = parse_json(text);
  ASSERT_TRUE(json);
  EXPECT_EQ(json->members.size(), 200'000U);
  EXPECT_EQ(json->members[7].value.text, "2");
}

TEST(JsonValue, TruthIsThatOfPython) {
  for (const char* text : {"null", "false", "0", "-0", "0.0", "-0.0", "0e5", "1e-400", "\"\"", "[]", "{}"}) {
    EXPECT_FALSE(parse_json(text)->truthy()) << text;
  }
  for (const char* text : {"true", "1", "-1", "0.5", "1e400", "\"0\"", "[0]", "{\"a\": null}"}) {
    EXPECT_TRUE(parse_json(text)->truthy()) << text;
  }
}

}  // namespace
}  // namespace hadal
