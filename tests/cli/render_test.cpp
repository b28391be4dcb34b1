#include <sys/stat.h>

#include <cstdlib>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/run_command.h"
#include "text/chat_cases.h"

namespace hadal {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

const std::string kBos = "<｜begin▁of▁sentence｜>";
const std::string kHi = R"([{"role": "user", "content": "Hi"}])";

TEST(Render, WritesThePromptAndNothingElse) {
  const CommandResult result = run_command("render -", kHi);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, kBos + "<｜User｜>Hi<｜Assistant｜><think>");
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(run_command("render --think off -", kHi).out, kBos + "<｜User｜>Hi<｜Assistant｜></think>");
}

TEST(Render, ReadsWhateverCanBeRead) {
  const std::string expected = kBos + "<｜User｜>Hi<｜Assistant｜><think>";
  EXPECT_EQ(run_command("render /dev/stdin", kHi).out, expected);
  const TempDirectory directory;
  const std::string file = directory.file("hi.json", kHi), pipe = directory.path() + "/pipe";
  EXPECT_EQ(run_command("render " + file).out, expected);
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(std::system(("cat " + file + " >" + pipe + " &").c_str()), 0);
  EXPECT_EQ(run_command("render " + pipe).out, expected);

  const CommandResult absent = run_command("render " + directory.path() + "/absent.json");
  EXPECT_EQ(absent.exit_code, 1);
  EXPECT_THAT(absent.err, HasSubstr("/absent.json: cannot open: No such file or directory"));
  const CommandResult folder = run_command("render " + directory.path());
  EXPECT_EQ(folder.exit_code, 1);
  EXPECT_THAT(folder.err, HasSubstr(": cannot read: Is a directory"));
}

TEST(Render, ThinkNamesALevelOfAnyDialect) {
  EXPECT_EQ(run_command("render --think low -", kHi).out, kBos + "<｜User｜>Hi<｜Assistant｜><think>");
  EXPECT_EQ(run_command("render --think high -", kHi).out, kBos + "<｜User｜>Hi<｜Assistant｜><think>");
  EXPECT_THAT(run_command("render --think max -", kHi).out,
              StartsWith(kBos + "Reasoning Effort: Absolute maximum"));
  EXPECT_EQ(run_command("render --dialect v4-0731 --think low -", kHi).out,
            kBos + "<｜User｜>Hi<｜Assistant｜><think>");
  EXPECT_THAT(run_command("render --dialect v4-0731 --think high -", kHi).out,
              StartsWith(kBos + "Reasoning Effort: Absolute maximum"));
  EXPECT_THAT(run_command("render --dialect v4-0731 --think max -", kHi).out,
              StartsWith(kBos + "Reasoning Effort: Beyond maximum"));
}

TEST(Render, TheModelTellsTheDialect) {
  const TempDirectory model;
  model.file("config.json", R"({"dspark_block_size": 5})");
  const std::string flags = "render --think max -m '" + model.path() + "' ";
  EXPECT_THAT(run_command(flags + "-", kHi).out, HasSubstr("Beyond maximum"));
  EXPECT_THAT(run_command(flags + "--dialect v4 -", kHi).out, HasSubstr("Absolute maximum"));
  model.file("config.json", R"({})");
  EXPECT_THAT(run_command(flags + "-", kHi).out, HasSubstr("Absolute maximum"));
  model.file("config.json", R"([)");
  EXPECT_EQ(run_command(flags + "-", kHi).exit_code, 1);
}

TEST(Render, KeepsReasoningWhenAsked) {
  const std::string messages = R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b",
      "reasoning_content": "r"}, {"role": "user", "content": "c"}])";
  EXPECT_THAT(run_command("render -", messages).out, HasSubstr("<｜Assistant｜></think>b"));
  EXPECT_THAT(run_command("render --keep-thinking -", messages).out,
              HasSubstr("<｜Assistant｜><think>r</think>b"));
}

TEST(Render, TakesARequest) {
  const std::string request = R"({"messages": [{"role": "user", "content": "a"}],
      "tools": [{"type": "function", "function": {"name": "f"}}])";
  EXPECT_THAT(run_command("render -", request + "}").out, StartsWith(kBos + "\n\n## Tools\n"));
  EXPECT_EQ(run_command("render -", request + R"(, "tool_choice": "none"})").out,
            kBos + "<｜User｜>a<｜Assistant｜><think>");
}

TEST(Render, TakesABatchOfCases) {
  for (const auto& [dialect, suffix] :
       {std::pair<std::string, std::string>{"v4", ""}, {"v4-0731", "_0731"}}) {
    const CommandResult result =
        run_command("render --dialect " + dialect + " '" + HADAL_TEST_DATA + "/encoding_cases.json'");
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const auto answers = parse_json(result.out);
    ASSERT_TRUE(answers) << answers.error().message();
    const JsonValue cases = load_cases("encoding_cases.json");
    ASSERT_EQ(answers->items.size(), 138U);
    int n_prompts = 0;
    for (std::size_t i = 0; i < cases.items.size(); ++i) {
      const JsonValue& one = cases.items[i];
      const JsonValue& answer = answers->items[i];
      EXPECT_EQ(string_member(answer, "name"), string_member(one, "name"));
      const JsonValue* prompt = one.find("prompt" + suffix);
      if (prompt == nullptr && one.find("error" + suffix) == nullptr) prompt = one.find("prompt");
      if (prompt == nullptr) continue;
      ++n_prompts;
      EXPECT_EQ(string_member(answer, "prompt"), prompt->text);
    }
    EXPECT_EQ(n_prompts, suffix.empty() ? 125 : 126);
  }
}

TEST(Render, OneBadCaseDoesNotSpoilABatch) {
  const CommandResult result = run_command("render -", R"([{"name": "a", "messages": 5}, {"name": 7},
      {"name": "c", "messages": [], "options": {"context": [5]}}, {"name": "d", "messages": []}])");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out,
            "[\n{\"name\": \"a\", \"error\": \"messages must be an array\"},\n"
            "{\"name\": 7, \"error\": \"a request needs messages\"},\n"
            "{\"name\": \"c\", \"error\": \"context: messages[0]: a message must be an object\"},\n"
            "{\"name\": \"d\", \"prompt\": \"<｜begin▁of▁sentence｜>\"}\n]\n");
}

TEST(Render, ErrorsAreOneLine) {
  const CommandResult missing = run_command("render /nonexistent/file");
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_EQ(missing.err, "hadal: /nonexistent/file: cannot open: No such file or directory\n");
  const CommandResult role = run_command("render -", R"([{"role": "critic"}])");
  EXPECT_EQ(role.exit_code, 1);
  EXPECT_THAT(role.err, StartsWith("hadal: standard input: messages[0]: unknown role \"critic\""));
  EXPECT_EQ(role.out, "");
  EXPECT_EQ(run_command("render -", "[\"\xFF\"]").err,
            "hadal: standard input: JSON byte 2: not valid UTF-8\n");
  EXPECT_EQ(run_command("render -", "5").exit_code, 1);
  EXPECT_EQ(run_command("render -", "").exit_code, 1);
  EXPECT_EQ(run_command("render").exit_code, 2);
  EXPECT_EQ(run_command("render --think loud -", kHi).exit_code, 2);
  EXPECT_EQ(run_command("render --dialect v9 -", kHi).exit_code, 2);
  const CommandResult help = run_command("render --help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Example:"));
}

}  // namespace
}  // namespace hadal
