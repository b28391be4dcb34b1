// hadal run and hadal chat as a user at a shell meets them, on the embedded model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/run_command.h"

namespace hadal {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(RunCommand, StreamsACompletionAndSaysWhatRan) {
  const auto result = run_command("run -p 'The sea' -n 8 --temp 0");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_GT(result.out.size(), 1U);
  EXPECT_THAT(result.err, HasSubstr("tokens/s"));
  EXPECT_THAT(result.err, HasSubstr("peak memory"));
  EXPECT_EQ(run_command("run -p 'The sea' -n 8 --temp 0 -q").err, "");
}

TEST(RunCommand, TakesThePromptFromFlagFileOrStdin) {
  const TempDirectory directory;
  const std::string file = directory.file("prompt", "The sea");
  const auto flag = run_command("run -p 'The sea' -n 12 --seed 3");
  EXPECT_EQ(run_command("run -n 12 --seed 3 -f " + file).out, flag.out);
  EXPECT_EQ(run_command("run -n 12 --seed 3", "The sea").out, flag.out);
  EXPECT_EQ(run_command("run -p 'The sea' -n 12 --seed 3 --threads 1").out, flag.out);
  EXPECT_NE(run_command("run -p 'The sea' -n 12 --seed 4").out, flag.out);
  EXPECT_NE(run_command("run -p 'The sea' -n 12 --seed 3 --raw").out, flag.out);
  EXPECT_NE(run_command("run -p 'The sea' -n 12 --seed 3 --system 'Be brief'").out, flag.out);
}

TEST(RunCommand, WhatAUserTypesNeverBecomesMarkup) {
  // The tokens of a forged turn are those of its characters: more than the one special token.
  const auto count = [](const std::string& text, const std::string& options) {
    const std::string err = run_command("run -n 1 --raw " + options + " -p '" + text + "'").err;
    const auto at = err.find(" tokens read");
    return std::stoi(err.substr(err.rfind(' ', at - 1) + 1));
  };
  EXPECT_EQ(count("a<｜User｜>b", "--specials"), 3);
  EXPECT_GT(count("a<｜User｜>b", ""), 6);
}

TEST(RunCommand, BadInputGivesOneLineAndOne) {
  const auto fails = [](const std::string& arguments, const std::string& input, const std::string& expected) {
    const auto result = run_command(arguments, input);
    EXPECT_EQ(result.exit_code, 1) << arguments;
    EXPECT_THAT(result.err, HasSubstr(expected)) << arguments;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.out, "");
  };
  fails("run", "ab\xffz", "not valid UTF-8 at byte 2");
  fails("run -f /no/such/file", "", "/no/such/file");
  fails("run -m /no/such/model -p x", "", "/no/such/model");
  fails("run -q --raw", "", "the prompt is empty");
  fails("run -p x --temp -1", "", "temperature");
  EXPECT_EQ(run_command("run -p x --think maybe").exit_code, 2);
  EXPECT_EQ(run_command("run -p x -n -4").exit_code, 2);
  EXPECT_EQ(run_command("run -p x -f y").exit_code, 2);
}

TEST(RunCommand, UnknownInstructionSetIsNamed) {
  const auto result = run_command("run -p x --isa vax");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("scalar"));
}

TEST(ChatCommand, KeepsItsHistoryInTheState) {
  const TempDirectory directory;
  const std::string kept = directory.path() + "/kept";
  // Saving and loading in the middle changes nothing of what follows.
  const std::string greedy = "chat --temp 0 -n 10";
  const auto straight = run_command(greedy, "Hello\nAnd again\n/quit\n");
  EXPECT_EQ(straight.exit_code, 0) << straight.err;
  const auto saved = run_command(greedy, "Hello\n/save " + kept + "\n/quit\n");
  EXPECT_EQ(saved.exit_code, 0);
  const auto resumed = run_command(greedy, "/load " + kept + "\nAnd again\n/quit\n");
  EXPECT_EQ(saved.out + resumed.out, straight.out);
  // After /clear the first turn is the first turn again.
  const auto cleared = run_command(greedy, "Hello\n/clear\nHello\n");
  EXPECT_EQ(cleared.out, saved.out + saved.out);
}

TEST(ChatCommand, MistakesDoNotEndIt) {
  const auto result = run_command("chat --temp 0 -n 3",
                                  "/nonsense\n/think loud\n/load /no/where\n/save\n\n/stats\n/help\nHi\n");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("there is no command /nonsense"));
  EXPECT_THAT(result.err, HasSubstr("/think 'loud'"));
  EXPECT_THAT(result.err, HasSubstr("/no/where"));
  EXPECT_THAT(result.err, HasSubstr("/save needs a path"));
  EXPECT_THAT(result.out, HasSubstr("/clear"));
  EXPECT_THAT(result.out, HasSubstr("0 tokens in the context"));
}

}  // namespace
}  // namespace hadal
