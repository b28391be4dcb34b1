#include "text/output_parser.h"

#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "text/chat_cases.h"
#include "text/chat_encoder.h"
#include "text/utf8.h"

namespace hadal {

void PrintTo(const ParsedMessage& message, std::ostream* out) {
  *out << "content '" << message.content << "' reasoning '" << message.reasoning_content << "' end "
       << static_cast<int>(message.end);
  for (const ParsedToolCall& call : message.tool_calls)
    *out << " " << call.name << "(" << call.arguments << ")";
}

void PrintTo(const ParsedToolCall& call, std::ostream* out) {
  *out << call.name << "(" << call.arguments << ")";
}

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

using Calls = std::vector<ParsedToolCall>;

std::string invoke(const std::string& name, const std::string& inside) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + inside + "\n</｜DSML｜invoke>";
}

std::string parameter(const std::string& name, const std::string& value,
                      const std::string& is_string = "true") {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + is_string + "\">" + value +
         "</｜DSML｜parameter>";
}

std::string block(const std::string& inside) {
  return "\n\n<｜DSML｜tool_calls>\n" + inside + "\n</｜DSML｜tool_calls>";
}

const std::string kCall = block(invoke("f", parameter("a", "v")));
const std::string kEos = "<｜end▁of▁sentence｜>";

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

ParsedMessage parse_chat(std::string_view output) {
  return parse_output(output, {.thinking = false});
}

// Feeds `output` in pieces whose sizes `next_size` tells, and checks what must be true of every stream: text
// is whole characters, calls come in order, and the finish event is last.
ParsedMessage parse_in_pieces(std::string_view output, const OutputParserOptions& options,
                              const std::function<std::size_t()>& next_size) {
  OutputParser parser(options);
  std::vector<OutputEvent> all;
  const auto take = [&](std::vector<OutputEvent> events) {
    for (OutputEvent& event : events) {
      EXPECT_TRUE(is_valid_utf8(event.text)) << event.text;
      all.push_back(std::move(event));
    }
  };
  while (!output.empty()) {
    const std::size_t size = std::min(output.size(), next_size());
    std::vector<OutputEvent> events;
    parser.feed(output.substr(0, size), events);
    take(std::move(events));
    output.remove_prefix(size);
  }
  std::vector<OutputEvent> events;
  parser.finish(events);
  take(std::move(events));
  int open = -1;
  int n_calls = 0;
  for (const OutputEvent& event : all) {
    using Kind = OutputEvent::Kind;
    if (event.kind == Kind::tool_call_start) {
      EXPECT_EQ(open, -1);
      EXPECT_EQ(event.index, n_calls++);
      open = event.index;
    } else if (event.kind == Kind::tool_call_arguments || event.kind == Kind::tool_call_end) {
      EXPECT_EQ(event.index, open);
      if (event.kind == Kind::tool_call_end) open = -1;
    } else {
      EXPECT_TRUE(open == -1 || event.kind == Kind::finish);
    }
    EXPECT_EQ(event.kind == Kind::finish, &event == &all.back());
  }
  EXPECT_TRUE(open == -1 || all.back().end == OutputEnd::truncated_call);
  return fold_events(all);
}

// The result is the same however the output is cut: in two at every byte, into single bytes, at random.
void check_all_splits(std::string_view output, const OutputParserOptions& options) {
  const ParsedMessage whole = parse_output(output, options);
  for (const ParsedToolCall& call : whole.tool_calls)
    EXPECT_TRUE(parse_json(call.arguments)) << call.arguments;
  for (std::size_t split = 1; split < output.size(); ++split) {
    std::size_t size = split;
    const auto cut = parse_in_pieces(output, options, [&] { return std::exchange(size, output.size()); });
    ASSERT_EQ(cut, whole) << testing::PrintToString(output) << "\ncut at byte " << split;
  }
  ASSERT_EQ(parse_in_pieces(output, options, [] { return 1; }), whole) << output << "\none byte at a time";
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    const Philox random(seed, 0);
    std::uint64_t n = 0;
    const auto size = [&] { return 1 + static_cast<std::size_t>(random.uniform(n++) * (seed < 4 ? 4 : 40)); };
    ASSERT_EQ(parse_in_pieces(output, options, size), whole) << output << "\nrandom pieces, seed " << seed;
  }
}

struct Case {
  std::string name;
  std::string text;
  bool thinking;
  const JsonValue* result;  // null: the official parser raises
};

std::vector<Case> golden_cases(const JsonValue& json) {
  std::vector<Case> cases;
  for (const JsonValue& one : json.items) {
    cases.push_back({string_member(one, "name"), string_member(one, "text"),
                     string_member(one, "thinking_mode") == "thinking", one.find("result")});
  }
  return cases;
}

void expect_equal(const ParsedMessage& message, const JsonValue& result, const std::string& name) {
  EXPECT_EQ(message.content, string_member(result, "content")) << name;
  EXPECT_EQ(message.reasoning_content, string_member(result, "reasoning_content")) << name;
  Calls calls;
  for (const JsonValue& call : result.find("tool_calls")->items) {
    const JsonValue& function = *call.find("function");
    calls.push_back({string_member(function, "name"), string_member(function, "arguments")});
  }
  EXPECT_EQ(message.tool_calls, calls) << name;
}

TEST(OutputParser, GoldenCasesThatTheOfficialParserAccepts) {
  const JsonValue json = load_cases("parse_cases.json");
  ASSERT_EQ(json.items.size(), 80U);
  int n_results = 0;
  for (const Case& one : golden_cases(json)) {
    if (one.result == nullptr) continue;
    ++n_results;
    const ParsedMessage message = parse_output(one.text, {.thinking = one.thinking});
    if (one.name == "value_invalid_json_flag_false") {
      // The one exception: the official parser gives {"x": not json}, which is not JSON.
      EXPECT_THAT(message.tool_calls, ElementsAre(ParsedToolCall{"f", R"({"x": "not json"})"}));
      continue;
    }
    expect_equal(message, *one.result, one.name);
  }
  EXPECT_EQ(n_results, 48);
}

TEST(OutputParser, StrictIsTheOfficialParser) {
  const JsonValue json = load_cases("parse_cases.json");
  int n_errors = 0;
  for (const Case& one : golden_cases(json)) {
    const auto message = parse_output_strict(one.text, one.thinking);
    ASSERT_EQ(message.has_value(), one.result != nullptr) << one.name;
    if (message) {
      expect_equal(*message, *one.result, one.name);
    } else {
      EXPECT_EQ(message.error().code(), ErrorCode::corrupt);
      ++n_errors;
    }
  }
  EXPECT_EQ(n_errors, 32);
}

struct Lenient {
  std::string content;
  std::string reasoning;
  Calls calls;
  OutputEnd end = OutputEnd::text;
};

// What becomes of the golden cases that the official parser raises on (docs/chat.md).
TEST(OutputParser, GoldenCasesThatTheOfficialParserRefuses) {
  const Calls call = {{"f", R"({"a": "v"})"}};
  const auto with_call = [&](const std::string& content) {
    return Lenient{content, "r", call, OutputEnd::tool_calls};
  };
  const std::map<std::string, Lenient> expected = {
      {"missing_eos_chat", {"Hello there.", "", {}}},
      {"missing_eos_thinking", {"Hello", "r", {}}},
      {"missing_think_end", {"", "all reasoning no end", {}}},
      {"missing_think_end_empty", {"", "", {}}},
      {"empty_text_chat", {"", "", {}}},
      {"think_start_in_text", {"Answer", "<think>r", {}}},
      {"think_end_in_chat", {"rAnswer", "", {}}},
      {"two_think_ends", {"ab", "r", {}}},
      {"text_after_eos", {"a", "r", {}}},
      {"two_eos", {"a", "r", {}}},
      {"eos_inside_reasoning", {"", "r", {}}},
      {"call_inside_reasoning", with_call("")},
      {"single_newline_before_call", with_call("x")},
      {"text_after_calls", with_call("")},
      {"newline_after_calls", with_call("")},
      {"duplicate_param", {"", "r", {{"f", R"({"a": "v", "a": "w"})"}}, OutputEnd::tool_calls}},
      {"missing_string_attr", with_call("")},
      {"bad_string_attr", with_call("")},
      {"missing_tool_name", {"", "r", {}}},
      {"no_newline_between_params", {"", "r", {{"f", R"({"a": "v", "b": "w"})"}}, OutputEnd::tool_calls}},
      {"junk_between_invokes", {"", "r", {call[0], {"g", R"({"a": "v"})"}}, OutputEnd::tool_calls}},
      {"no_newline_between_invokes", {"", "r", {call[0], {"g", R"({"a": "v"})"}}, OutputEnd::tool_calls}},
      {"unclosed_param", {"", "r", {}, OutputEnd::truncated_call}},
      {"unclosed_block", with_call("")},
      {"unclosed_block_newline", with_call("")},
      {"block_start_only_gt", {"", "r", {}, OutputEnd::truncated_call}},
      {"block_start_then_eos", {"", "r", {}}},
      {"name_single_quotes", {"", "r", {{"f", "{}"}}, OutputEnd::tool_calls}},
      {"old_function_calls_tag", with_call("")},
      {"dsml_token_in_content", {"the ｜DSML｜ token", "r", {}}},
      {"crlf_in_block", with_call("")},
      {"reasoning_with_tool_text", {"ok", "maybe <｜DSML｜tool_calls>? no", {}}},
  };
  const JsonValue json = load_cases("parse_cases.json");
  int n_seen = 0;
  for (const Case& one : golden_cases(json)) {
    if (one.result != nullptr) continue;
    ASSERT_TRUE(expected.contains(one.name)) << one.name;
    const Lenient& want = expected.at(one.name);
    const ParsedMessage message = parse_output(one.text, {.thinking = one.thinking});
    EXPECT_EQ(message.content, want.content) << one.name;
    EXPECT_EQ(message.reasoning_content, want.reasoning) << one.name;
    EXPECT_EQ(message.tool_calls, want.calls) << one.name;
    EXPECT_EQ(message.end, want.end) << one.name;
    ++n_seen;
  }
  EXPECT_EQ(n_seen, static_cast<int>(expected.size()));
}

// The outputs whose names begin the tests below, for the test of splits.
std::vector<std::string> edge_cases() {
  const std::string open = "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n";
  std::vector<std::string> cases = {
      "r</think>x" + kCall + kEos,
      "x" + kCall.substr(2),
      "x\r\n\r\n" + kCall.substr(2),
      "x\r\n" + kCall.substr(2),
      "x\n\n\r\n\n\n\n" + kCall.substr(2) + kEos + "more",
      "a < b, a <｜b, <|, </, <D, <DSML, </think, <｜end, a <tool_calls> b",
      "no close: <｜DSML｜tool_calls> is only mentioned, so is <｜DSML｜invoke>.",
      kCall + "text" + kCall + "</think>x",
      "r" + kCall + "</think>x",
      "x\n\n" + invoke("f", parameter("a", "v")),
      replace_all(kCall, "｜", "|"),
      replace_all(kCall, "<｜", "<"),
      replace_all(replace_all(kCall, "<｜", "<"), "</｜", "</"),
      replace_all(kCall, "｜DSML｜", ""),
      open + "<｜DSML｜parameter name='a' string='true'>v</｜DSML｜parameter>\n</｜DSML｜invoke>",
      open + "<｜DSML｜parameter string=\"false\" name=\"a\">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>",
      open + "<｜DSML｜parameter name=a string=false >{\"b\": 2}</｜DSML｜parameter>\n</｜DSML｜invoke>",
      open +
          "<｜DSML｜parameter name=\"a\">\n<｜DSML｜parameter name=\"b\">1</｜DSML｜parameter>\n"
          "<｜DSML｜parameter name=\"c\" string=\"false\">2</｜DSML｜parameter>\n</｜DSML｜parameter>\n"
          "<｜DSML｜parameter name=\"d\" string=\"true\">e</｜DSML｜parameter>\n</｜DSML｜invoke>",
      open +
          "<｜DSML｜parameter name=\"a\" string=\"false\">\n<｜DSML｜parameter name=\"b\" string=\"true\">x"
          "</｜DSML｜parameter>\n</｜DSML｜parameter>\n</｜DSML｜invoke>",
      block(invoke("f", parameter("a", "2>&1 </｜DSML｜ </｜DSML｜parametr <think></think>" + kEos +
                                           " </tool_result>"))),
      block(
          invoke("f", parameter("a", "</｜DSML｜invoke>") + "\n" + parameter("b", "</｜DSML｜invoke>\n<x>"))),
      open + "<｜DSML｜parameter name=\"a\" string=\"true\">v\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
      open +
          "<｜DSML｜parameter name=\"a\" "
          "string=\"true\">v</｜DSML｜param>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
      open + parameter("a", "v") + "\n<｜DSML｜invoke name=\"g\">\n" + parameter("b", "w") +
          "\n</｜DSML｜tool_calls>",
      block(invoke("f", parameter("a", "{oops", "false") + parameter("b", "1e400", "false") +
                            parameter("c", "", "false"))),
      block(invoke("f", parameter("a", "x") + parameter("a", "y"))),
      block(""),
      block(invoke("", parameter("", ""))),
      block("<｜DSML｜invoke>\n" + parameter("a", "v") + "\n</｜DSML｜invoke>\n" + invoke("g", "")),
      block(invoke("emoji 👩‍👩‍👧", parameter("鍵", "😀 \" \\ \n \x01 ｜ ＜"))),
      std::string("bad \xF0\x9F bytes \xFF </think> \xE2\x96"),
      open + std::string(300, '\n') + parameter("a", "v") + "</｜DSML｜invoke>",
      "\n\n<｜DSML｜tool_calls>" + std::string(300, '\n') + "<｜DSML｜invoke name=\"f\">",
      open + "<" + std::string(25, 'x') + "parameter name=\"a\" string=\"true\">v",
      open + "<" + std::string(26, 'x') + "parameter name=\"a\" string=\"true\">v",
  };
  for (const std::size_t n : {255, 256, 257}) cases.push_back("<｜DSML｜" + std::string(n, ' ') + ">x");
  for (std::size_t n = 0; n <= kCall.size(); n += 1) cases.push_back("x" + kCall.substr(0, n));
  return cases;
}

TEST(OutputParser, EverySplitOfGoldenCasesGivesTheSame) {
  const JsonValue json = load_cases("parse_cases.json");
  for (const Case& one : golden_cases(json)) {
    check_all_splits(one.text, {.thinking = one.thinking});
    if (HasFatalFailure()) return;
  }
}

TEST(OutputParser, EverySplitOfEdgeCasesGivesTheSame) {
  const auto schemas = std::make_shared<const ToolSchemas>(tool_schemas_from_json(*parse_json(
      R"([{"function": {"name": "f", "parameters": {"properties": {"a": {"type": "object"}, "b": {"type": "string"}}}}}])")));
  for (const std::string& text : edge_cases()) {
    check_all_splits(text, {.thinking = true});
    check_all_splits(text, {.thinking = false});
    check_all_splits(text, {.thinking = false, .plain_xml = true, .schemas = schemas});
    check_all_splits(text, {.thinking = false, .tool_calls = false});
    check_all_splits(text, {.thinking = true, .starts_in_tool_calls = true});
    check_all_splits(text, {.thinking = true, .plain_xml = true, .mends_tags = true, .schemas = schemas});
    if (HasFatalFailure()) return;
  }
}

// What has been given out is never taken back: at every byte it is the beginning of the final result.
TEST(OutputParser, NothingIsGivenOutTooEarly) {
  const JsonValue json = load_cases("parse_cases.json");
  for (const Case& one : golden_cases(json)) {
    const ParsedMessage whole = parse_output(one.text, {.thinking = one.thinking});
    OutputParser parser({.thinking = one.thinking});
    std::vector<OutputEvent> events;
    for (const char byte : one.text) {
      parser.feed(std::string_view(&byte, 1), events);
      const ParsedMessage so_far = fold_events(events);
      ASSERT_TRUE(whole.content.starts_with(so_far.content)) << one.name;
      ASSERT_TRUE(whole.reasoning_content.starts_with(so_far.reasoning_content)) << one.name;
    }
  }
}

// 1.11 of the notes on serving: what a parser must survive. 1: an output cut off anywhere.
TEST(OutputParserEdges, TruncationAnywhereLeaksNoMarkupAndRunsNoHalfCall) {
  const std::string text =
      "Let me see." + block(invoke("f", parameter("a", "v") + "\n" + parameter("n", "[1]", "false")) + "\n" +
                            invoke("g", ""));
  const Calls calls = {{"f", R"({"a": "v", "n": [1]})"}, {"g", "{}"}};
  const std::size_t f_ends = text.find("</｜DSML｜invoke") + std::string("</｜DSML｜invoke").size();
  for (std::size_t n = 0; n < text.size(); ++n) {
    const ParsedMessage message = parse_chat(text.substr(0, n));
    EXPECT_THAT(message.content, Not(HasSubstr("DSML"))) << n;
    EXPECT_THAT(message.content, Not(HasSubstr("<｜"))) << n;
    const std::size_t expected = n < f_ends                                                         ? 0
                                 : n < text.size() - std::string(">\n</｜DSML｜tool_calls>").size() ? 1
                                                                                                    : 2;
    ASSERT_EQ(message.tool_calls.size(), expected) << text.substr(0, n);
    for (std::size_t i = 0; i < expected; ++i) EXPECT_EQ(message.tool_calls[i], calls[i]);
  }
  const std::string in_value = text.substr(0, text.find("[1"));
  EXPECT_EQ(parse_chat(in_value).end, OutputEnd::truncated_call);
  EXPECT_EQ(parse_chat(text).end, OutputEnd::tool_calls);
}

TEST(OutputParserEdges, TruncatedCallsAreNeverEndedInTheStream) {
  const std::string text = block(invoke("f", parameter("a", "some value")));
  OutputParser parser({.thinking = false});
  std::vector<OutputEvent> events;
  parser.feed(text.substr(0, text.find(" value")), events);
  parser.finish(events);
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].kind, OutputEvent::Kind::tool_call_start);
  EXPECT_EQ(events[0].text, "f");
  EXPECT_EQ(events[1].kind, OutputEvent::Kind::tool_call_arguments);
  EXPECT_EQ(events[1].text, R"({"a": "some)");
  EXPECT_EQ(events[2].kind, OutputEvent::Kind::finish);
  EXPECT_EQ(events[2].end, OutputEnd::truncated_call);
}

std::string arguments_of(const std::string& output, OutputParserOptions options = {.thinking = false}) {
  const ParsedMessage message = parse_output(output, std::move(options));
  return message.tool_calls.size() == 1 ? message.tool_calls[0].arguments
                                        : std::to_string(message.tool_calls.size()) + " calls";
}

// 2 and 24
TEST(OutputParserEdges, ArgumentsAreValidJsonAndKeepTheirSpelling) {
  const auto with = [](const std::string& value) {
    return arguments_of(block(invoke("f", parameter("x", value, "false"))));
  };
  EXPECT_EQ(with("{oops"), R"({"x": "{oops"})");
  EXPECT_EQ(with("not \"json\""), R"({"x": "not \"json\""})");
  EXPECT_EQ(with(""), R"({"x": ""})");
  EXPECT_EQ(with("NaN"), R"({"x": "NaN"})");
  EXPECT_EQ(with("True"), R"({"x": "True"})");
  EXPECT_EQ(with("1, \"y\": 2"), R"({"x": "1, \"y\": 2"})");
  EXPECT_EQ(with("\"\n\""), R"({"x": "\"\n\""})");
  EXPECT_EQ(with(std::string(200, '[') + std::string(200, ']')),
            "{\"x\": \"" + std::string(200, '[') + std::string(200, ']') + "\"}");
  for (const char* kept : {"1e400", "-0", "-0.0", "1.10", "12345678901234567890123", "{\"k\": 1, \"k\": 2}",
                           " 5 ", "\"\\ud800\"", "[1,  \"two\"]"}) {
    EXPECT_EQ(with(kept), std::string("{\"x\": ") + kept + "}");
  }
}

// 3 and 6
TEST(OutputParserEdges, SchemasDecideTheTypes) {
  OutputParserOptions options{.thinking = false};
  options.schemas = std::make_shared<const ToolSchemas>(tool_schemas_from_json(*parse_json(R"([{"function":
      {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"},
       "b": {"type": "boolean"}, "o": {"type": "object"}, "u": {"anyOf": [{"type": "number"}, {"type": "null"}]},
       "e": {"enum": ["x", "y"]}, "m": {"type": ["string", "number"]}, "any": {}}}}}])")));
  const auto with = [&](const std::string& name, const std::string& value, const std::string& is_string) {
    return arguments_of(block(invoke("f", parameter(name, value, is_string))), options);
  };
  EXPECT_EQ(with("n", "5", "true"), R"({"n": 5})");
  EXPECT_EQ(with("n", "five", "true"), R"({"n": "five"})");
  EXPECT_EQ(with("b", "true", "true"), R"({"b": true})");
  EXPECT_EQ(with("b", "False", "false"), R"({"b": false})");
  EXPECT_EQ(with("o", "{\"k\": [1]}", "true"), R"({"o": {"k": [1]}})");
  EXPECT_EQ(with("o", "[1]", "true"), R"({"o": "[1]"})");
  EXPECT_EQ(with("u", "null", "true"), R"({"u": null})");
  EXPECT_EQ(with("u", "1.50", "true"), R"({"u": 1.50})");
  EXPECT_EQ(with("s", "5", "true"), R"({"s": "5"})");
  EXPECT_EQ(with("s", "5", "false"), R"({"s": "5"})");
  EXPECT_EQ(with("s", "\"5\"", "false"), R"({"s": "5"})");
  EXPECT_EQ(with("s", "{oops", "false"), R"({"s": "{oops"})");
  EXPECT_EQ(with("e", "x", "false"), R"({"e": "x"})");
  EXPECT_EQ(with("m", "5", "true"), R"({"m": "5"})");
  EXPECT_EQ(with("m", "5", "false"), R"({"m": 5})");
  EXPECT_EQ(with("any", "5", "true"), R"({"any": "5"})");
  EXPECT_EQ(with("unknown", "5", "true"), R"({"unknown": "5"})");
  EXPECT_EQ(arguments_of(block(invoke("unknown", parameter("n", "5"))), options), R"({"n": "5"})");
}

// 4
TEST(OutputParserEdges, AttributesComeInAnyForm) {
  const auto with = [](const std::string& attributes, const std::string& value) {
    return arguments_of(
        block(invoke("f", "<｜DSML｜parameter " + attributes + ">" + value + "</｜DSML｜parameter>")));
  };
  EXPECT_EQ(with("name=\"a\"", "5"), R"({"a": "5"})");
  EXPECT_EQ(with("string=\"true\" name=\"a\"", "5"), R"({"a": "5"})");
  EXPECT_EQ(with("string=\"false\" name=\"a\"", "5"), R"({"a": 5})");
  EXPECT_EQ(with("name='a' string='false'", "5"), R"({"a": 5})");
  EXPECT_EQ(with("name=a string=false", "5"), R"({"a": 5})");
  EXPECT_EQ(with("name = \"a\"  string = \"False\" ", "5"), R"({"a": 5})");
  EXPECT_EQ(with("name=\"a\" type=\"x\" string=\"false\"", "5"),
            R"({"a\" type=\"x": 5})");  // as the official parser
  EXPECT_EQ(with("name=\"a\" string=\"maybe\"", "5"), R"({"a": "5"})");
  EXPECT_EQ(with("", "5"), R"({"": "5"})");
  EXPECT_EQ(with("name=\"a\"", "a > b"), R"({"a": "a > b"})");
  for (const char* header :
       {" name='f'>", " name=f>", "  id=\"1\" name=\"f\" >", " name=\"f\" id='x'>", " name=\"f\""}) {
    const ParsedMessage message =
        parse_chat(block(std::string("<｜DSML｜invoke") + header + "\n</｜DSML｜invoke>"));
    EXPECT_EQ(message.tool_calls, (Calls{{"f", "{}"}})) << header;
  }
}

// 5
TEST(OutputParserEdges, ARepeatedParameterIsRepeated) {
  EXPECT_EQ(arguments_of(block(invoke("f", parameter("a", "1") + parameter("a", "2")))),
            R"({"a": "1", "a": "2"})");
  EXPECT_EQ(parse_json(R"({"a": "1", "a": "2"})")->find("a")->text, "2");
}

// 7 and 17
TEST(OutputParserEdges, ValuesMayHoldMarkup) {
  for (const std::string value :
       {"2>&1", "a</tool_result>b", "<think>x</think>", "a<｜end▁of▁sentence｜>b", "</parameter>",
        "</|DSML|parameter>", "<", "</", "</｜DSML", "</｜DSML｜", "<｜DSML｜invoke name=\"g\">\n",
        "<｜DSML｜parameter name=\"x\" string=\"true\">", "</｜DSML｜invoke>", "</｜DSML｜invoke>\nx",
        "</｜DSML｜tool_calls>", "<｜User｜>", "\n\n<｜DSML｜tool_calls>\n"}) {
    JsonValue expected;
    expected.kind = JsonValue::Kind::string;
    expected.text = value;
    const std::string text = block(invoke("f", parameter("a", value) + "\n" + parameter("b", "w"))) + kEos;
    EXPECT_EQ(arguments_of(text), "{\"a\": " + to_python_json(expected) + ", \"b\": \"w\"}");
    EXPECT_EQ(parse_output_strict(text, false)->tool_calls, parse_chat(text).tool_calls);
  }
  // The closing tag itself cannot be in a value: what follows it is dropped up to the next tag.
  EXPECT_EQ(arguments_of(block(invoke("f", parameter("a", "x</｜DSML｜parameter>y")))), R"({"a": "x"})");
}

TEST(OutputParserEdges, AForgottenEndOfAValueIsSupplied) {
  const std::string begin = "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">v";
  EXPECT_EQ(arguments_of(block(begin + "\n</｜DSML｜invoke>")), R"({"a": "v\n"})");
  EXPECT_EQ(arguments_of(block(begin + "</｜DSML｜param>\n</｜DSML｜invoke>")), R"({"a": "v"})");
  EXPECT_EQ(arguments_of(block(begin)), R"({"a": "v\n"})");
  EXPECT_EQ(parse_chat(block(begin + "</｜DSML｜invoke>\n" + invoke("g", ""))).tool_calls,
            (Calls{{"f", R"({"a": "v"})"}, {"g", "{}"}}));
  EXPECT_EQ(parse_chat(block("<｜DSML｜invoke name=\"f\">\n" + parameter("a", "v") + "\n" + invoke("g", "")))
                .tool_calls,
            (Calls{{"f", R"({"a": "v"})"}, {"g", "{}"}}));
}

// 8
TEST(OutputParserEdges, NestedParametersAreObjects) {
  const auto child = [](const std::string& name, const std::string& value) {
    return "<｜DSML｜parameter name=\"" + name + "\">" + value + "</｜DSML｜parameter>\n";
  };
  const std::string edits = "<｜DSML｜parameter name=\"edits\">\n" + child("old", "x") + child("new", "y");
  const std::string path = child("path", "/tmp/a.c");
  EXPECT_EQ(arguments_of(block(
                invoke("edit", path + edits + "</｜DSML｜parameter>\n" + parameter("z", "1", "false")))),
            R"({"path": "/tmp/a.c", "edits": {"old": "x", "new": "y"}, "z": 1})");
  EXPECT_EQ(arguments_of(block(invoke("edit", path + edits))),
            R"({"path": "/tmp/a.c", "edits": {"old": "x", "new": "y"}})");
  EXPECT_EQ(arguments_of(block(invoke("f", "<｜DSML｜parameter name=\"a\" string=\"false\">\n" +
                                               parameter("b", "1") + "\n" + "</｜DSML｜parameter>"))),
            R"({"a": {"b": "1"}})");
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += "<｜DSML｜parameter name=\"k\">";
  const std::string arguments = arguments_of(block(invoke("f", deep + "v")));
  EXPECT_TRUE(parse_json(arguments)) << arguments;
}

// 9 and 10
TEST(OutputParserEdges, OtherSpellingsOfTheMarker) {
  for (const char* marker : {"|DSML|", "DSML｜", "DSML|", "｜DSML|", "|DSML｜"}) {
    EXPECT_EQ(arguments_of(replace_all(kCall, "｜DSML｜", marker)), R"({"a": "v"})") << marker;
  }
  const std::string xml = "x" + replace_all(kCall, "｜DSML｜", "");
  EXPECT_EQ(parse_chat(xml).content, xml);
  EXPECT_EQ(arguments_of(xml, {.thinking = false, .plain_xml = true}), R"({"a": "v"})");
  EXPECT_EQ(
      parse_output("a <tool_calls> b <invoke name=\"f\"> c", {.thinking = false, .plain_xml = true}).content,
      "a <tool_calls> b <invoke name=\"f\"> c");
}

// What the server asks for, since its clients can do nothing with markup.
TEST(OutputParserEdges, MendedTags) {
  const OutputParserOptions mends = {.thinking = false, .mends_tags = true};
  // Tags that stand in the text alone are left out, the text around them stays; without the option all of it
  // is text.
  for (const auto& [text, content] : std::vector<std::pair<std::string, std::string>>{
           {"only mentioned: <｜DSML｜tool_calls> here", "only mentioned:  here"},
           {"a</｜DSML｜invoke>b", "ab"},
           {"a<｜DSML｜parameter name=\"x\" string=\"true\">v</｜DSML｜parameter>b", "avb"},
           {"a ｜DSML｜ b", "a  b"},
           {"a<|DSML|x>b", "ab"},
           {"a<｜DSML｜no end\nb", "a end\nb"},
           {"，full-width ｜ bars ｜DS stay，", "，full-width ｜ bars ｜DS stay，"},
       }) {
    EXPECT_EQ(parse_output(text, mends).content, content);
    EXPECT_EQ(parse_output(text, {.thinking = false}).content, text);
  }
  // A block whose opening is misspelt is one, and in it a tag counts whatever its marker.
  const std::string misspelt = replace_all(kCall, "<｜DSML｜tool_calls>", "<｜DSML｜tools>");
  EXPECT_EQ(parse_output("x" + misspelt, mends).tool_calls.size(), 1U);
  EXPECT_EQ(parse_output("x" + misspelt, mends).content, "x\n\n");
  for (const char* marker : {"<｜DML｜parameter", "<parameter", "<|xml|parameter"}) {
    const std::string drifted =
        block(invoke("f", replace_all(parameter("a", "v"), "<｜DSML｜parameter", marker)));
    EXPECT_EQ(arguments_of(drifted, mends), R"({"a": "v"})") << marker;
  }
  // Markup is no name, unless a tool has it.
  const std::string odd = block("<｜DSML｜invoke name=\"f｜DSML｜\">\n</｜DSML｜invoke>");
  EXPECT_EQ(parse_output(odd, mends).tool_calls.at(0).name, "f");
}

// 11: up to two line breaks before the block belong to it, whatever they are; further ones are content.
TEST(OutputParserEdges, LineBreaksBeforeTheBlock) {
  const std::string bare = kCall.substr(2);
  for (const auto& [before, content] : std::vector<std::pair<std::string, std::string>>{{"x", "x"},
                                                                                        {"x\n", "x"},
                                                                                        {"x\n\n", "x"},
                                                                                        {"x\n\n\n", "x\n"},
                                                                                        {"x\r\n", "x"},
                                                                                        {"x\r\n\r\n", "x"},
                                                                                        {"x ", "x "},
                                                                                        {"\n\n", ""},
                                                                                        {"", ""}}) {
    EXPECT_EQ(parse_chat(before + bare).content, content);
    EXPECT_EQ(parse_chat(before + bare).tool_calls.size(), 1U);
  }
  EXPECT_EQ(arguments_of(replace_all(kCall, "\n", "\r\n")), R"({"a": "v"})");
  EXPECT_EQ(arguments_of(replace_all(kCall, "\n", "")), R"({"a": "v"})");
  EXPECT_EQ(parse_chat("\n\nhello\n\n").content, "\n\nhello\n\n");
}

// 12 and 13
TEST(OutputParserEdges, AfterTheBlockNothingCounts) {
  for (const std::string& after : {std::string("bye"), kCall, std::string("</think>x"), kEos + "x"}) {
    const ParsedMessage message = parse_output("r</think>c" + kCall + after);
    EXPECT_EQ(message.content, "c");
    EXPECT_EQ(message.tool_calls.size(), 1U);
  }
  const ParsedMessage inside = parse_output("thinking" + kCall + "</think>x");
  EXPECT_EQ(inside.reasoning_content, "thinking");
  EXPECT_EQ(inside.content, "");
  EXPECT_EQ(inside.tool_calls.size(), 1U);
  OutputParser parser;
  std::vector<OutputEvent> events;
  parser.feed("r</think>c" + kCall.substr(0, kCall.size() - 2), events);
  EXPECT_FALSE(parser.done());
  parser.feed("s>", events);
  EXPECT_TRUE(parser.done());
}

// 14
TEST(OutputParserEdges, WithoutTheEndOfThinkingAllIsReasoning) {
  const ParsedMessage message = parse_output("I wonder.\n\nThe answer is 4." + kEos);
  EXPECT_EQ(message.reasoning_content, "I wonder.\n\nThe answer is 4.");
  EXPECT_EQ(message.content, "");
}

// 19 and 20
TEST(OutputParserEdges, EmptyBlocksAndUndeclaredTools) {
  EXPECT_THAT(parse_chat("x" + block("")).tool_calls, IsEmpty());
  EXPECT_EQ(parse_chat("x" + block("")).content, "x");
  EXPECT_EQ(parse_output("x" + kCall, {.thinking = false, .tool_calls = false}).content, "x" + kCall);
  EXPECT_EQ(parse_chat("Write <｜DSML｜tool_calls> first, then go.").content,
            "Write <｜DSML｜tool_calls> first, then go.");
}

TEST(OutputParserEdges, ABlockThatThePromptOpened) {
  const ParsedMessage message = parse_output(
      "<｜DSML｜invoke name=\"f\">\n" + parameter("a", "v") + "\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
      {.starts_in_tool_calls = true});
  EXPECT_EQ(message.tool_calls, (Calls{{"f", R"({"a": "v"})"}}));
}

// 18: the fragments of a stream put together balance; a long string is given out as it comes.
TEST(OutputParserEdges, ArgumentsAreStreamed) {
  OutputParser parser({.thinking = false});
  std::vector<OutputEvent> events;
  parser.feed(
      "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
      "string=\"true\">one",
      events);
  EXPECT_EQ(events.back().text, R"({"a": "one)");
  events.clear();
  parser.feed(" two \"three\"<", events);
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(events[0].text, R"( two \"three\")");
  events.clear();
  parser.feed("/p></｜DSML｜parameter>\n</｜DSML｜invoke>", events);
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].text, "</p>\"}");
  EXPECT_EQ(events[1].kind, OutputEvent::Kind::tool_call_end);
}

// 16 and 23
TEST(OutputParserEdges, BrokenUtf8IsReplaced) {
  EXPECT_EQ(parse_chat("a\xFF b\xE2\x96").content, "a\uFFFD b\uFFFD");
  EXPECT_EQ(arguments_of(block(invoke("f", parameter("a", "\xF0\x9F")))), "{\"a\": \"\uFFFD\"}");
  EXPECT_FALSE(parse_output_strict("a\xFF" + kEos, false));
}

// What the encoder writes of a call, both parsers read back.
TEST(OutputParser, RandomCallsComeBack) {
  const std::vector<std::string> pieces = {"a", "é",  "😀",  "\"",      "\\",         "\n", "\n\n",
                                           "<", ">",  "</", "<think>", "</think>",   "｜", "<｜",
                                           " ", "\t", "{",  "}",       "name=\"x\"", "1",  ""};
  const Philox random(7, 0);
  std::uint64_t n = 0;
  const auto below = [&](std::size_t limit) {
    return static_cast<std::size_t>(random.uniform(n++) * static_cast<double>(limit));
  };
  const auto text = [&] {
    std::string out;
    for (std::size_t i = below(6); i > 0; --i) out += pieces[below(pieces.size())];
    return out;
  };
  for (int round = 0; round < 2000; ++round) {
    ChatMessage message;
    message.role = "assistant";
    const std::size_t n_calls = 1 + below(3);
    Calls expected;
    for (std::size_t c = 0; c < n_calls; ++c) {
      std::string arguments = "{";
      for (std::size_t p = below(4); p > 0; --p) {
        if (arguments.size() > 1) arguments += ", ";
        append_json_string(arguments, std::to_string(p) + text());
        arguments += ": ";
        if (below(2) == 0) {
          append_json_string(arguments, text());
        } else {
          arguments += std::vector<std::string>{"1", "1.5", "null", "[1, \"<\"]", "{\"k\": {}}"}[below(5)];
        }
      }
      arguments += "}";
      expected.push_back({"f" + text(), arguments});
      message.tool_calls.push_back({"", expected.back().name, arguments});
    }
    const auto prompt =
        encode_chat(dialect_v4(), std::vector<ChatMessage>{message}, {.thinking = false, .add_bos = false});
    ASSERT_TRUE(prompt);
    const std::string output = prompt_text(*prompt);
    ASSERT_EQ(parse_chat(output).tool_calls, expected) << output;
    const auto strict = parse_output_strict(output, false);
    ASSERT_TRUE(strict) << strict.error().message();
    ASSERT_EQ(strict->tool_calls, expected) << output;
  }
}

// Long outputs cost time in proportion, however they are cut.
TEST(OutputParser, LongOutputsAreLinear) {
  const std::string open =
      "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\"";
  for (const std::string& text : {std::string(400'000, '<'), std::string(400'000, '\n'),
                                  open + " string=\"true\">" + std::string(400'000, '<'),
                                  open + std::string(400'000, '"'), open + ">" + std::string(400'000, 'x'),
                                  "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke" + std::string(400'000, '<')}) {
    OutputParser parser({.thinking = false, .plain_xml = true});
    std::vector<OutputEvent> events;
    std::size_t n = 0;
    for (const char byte : text) {
      parser.feed(std::string_view(&byte, 1), events);
      for (const OutputEvent& event : events) n += event.text.size();
      events.clear();
    }
    parser.finish(events);
    EXPECT_LE(n, 2 * text.size());
  }
}

}  // namespace
}  // namespace hadal
