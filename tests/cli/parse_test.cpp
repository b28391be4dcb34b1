#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/run_command.h"
#include "text/chat_cases.h"

namespace hadal {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

const std::string kCall =
    "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"n\" "
    "string=\"true\">5</｜DSML｜parameter>\n"
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

TEST(Parse, WritesAMessage) {
  const CommandResult result = run_command("parse -", "Two and two.</think>4");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out,
            "{\"role\": \"assistant\", \"content\": \"4\", \"reasoning_content\": \"Two and two.\", "
            "\"tool_calls\": []}\n");
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(run_command("parse --think off -", "[1, 2]").out,
            "{\"role\": \"assistant\", \"content\": \"[1, 2]\", \"reasoning_content\": \"\", \"tool_calls\": "
            "[]}\n");
}

TEST(Parse, ToolsDecideTypes) {
  const TempDirectory directory;
  const std::string tools = directory.file(
      "tools.json",
      R"([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}])");
  EXPECT_THAT(run_command("parse --think off -", "\n\n" + kCall).out,
              HasSubstr(R"({"type": "function", "function": {"name": "f", "arguments": "{\"n\": \"5\"}"}})"));
  EXPECT_THAT(run_command("parse --think off --tools '" + tools + "' -", "\n\n" + kCall).out,
              HasSubstr(R"("arguments": "{\"n\": 5}")"));
  EXPECT_EQ(run_command("parse --tools /nonexistent -", "a").exit_code, 1);
}

TEST(Parse, TakesABatchOfCases) {
  const JsonValue cases = load_cases("parse_cases.json");
  for (const std::string flag : {"", "--strict "}) {
    const CommandResult result = run_command("parse " + flag + "'" + HADAL_TEST_DATA + "/parse_cases.json'");
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const auto answers = parse_json(result.out);
    ASSERT_TRUE(answers) << answers.error().message();
    ASSERT_EQ(answers->items.size(), 80U);
    int n_errors = 0;
    for (std::size_t i = 0; i < cases.items.size(); ++i) {
      const JsonValue& one = cases.items[i];
      const JsonValue& answer = answers->items[i];
      const std::string name = string_member(one, "name");
      EXPECT_EQ(string_member(answer, "name"), name);
      if (answer.find("error") != nullptr) ++n_errors;
      if (one.find("result") == nullptr) continue;
      ASSERT_NE(answer.find("message"), nullptr) << name;
      if (flag.empty() && name == "value_invalid_json_flag_false") continue;  // docs/chat.md
      EXPECT_EQ(to_python_json(*answer.find("message")), to_python_json(*one.find("result"))) << name;
    }
    EXPECT_EQ(n_errors, flag.empty() ? 0 : 32);
  }
}

TEST(Parse, OneBadCaseDoesNotSpoilABatch) {
  const CommandResult result =
      run_command("parse -", R"([{"name": "a"}, {"name": "b", "text": "4", "thinking_mode": "chat"}])");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(
      result.out,
      "[\n{\"name\": \"a\", \"error\": \"a case needs a text\"},\n{\"name\": \"b\", \"message\": {\"role\": "
      "\"assistant\", \"content\": \"4\", \"reasoning_content\": \"\", \"tool_calls\": []}}\n]\n");
}

TEST(Parse, TruncatedCallsAreToldOf) {
  const CommandResult result = run_command("parse --think off -", "x\n\n" + kCall.substr(0, 80));
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("\"tool_calls\": []"));
  EXPECT_EQ(result.err, "hadal: the output ends within a tool call, which is left out\n");
  EXPECT_THAT(
      run_command("parse -", R"([{"name": "t", "text": "<｜DSML｜tool_calls>", "thinking_mode": "chat"}])")
          .out,
      HasSubstr("\"truncated_call\": true"));
}

TEST(Parse, StrictFailsWithOneLine) {
  const CommandResult result = run_command("parse --strict -", "no end");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, StartsWith("hadal: "));
  EXPECT_EQ(run_command("parse").exit_code, 2);
  EXPECT_EQ(run_command("parse --think loud -").exit_code, 2);
  EXPECT_THAT(run_command("parse --help").out, HasSubstr("Example:"));
}

}  // namespace
}  // namespace hadal
