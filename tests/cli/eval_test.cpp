// hadal eval as a user at a shell meets it, on the embedded model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_command.h"

namespace hadal {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

Json eval(const std::string& arguments) {
  const auto result = run_command("eval " + arguments + " --json");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return Json::parse(result.out, nullptr, false);
}

// The numbers are far below what docs/eval.md says of the model, and far above what chance gives: nothing.
TEST(EvalCommand, TheDefaultModelAnswers) {
  const Json arithmetic = eval("arithmetic --trials 4");
  EXPECT_EQ(arithmetic["rows"].size(), 3U);
  EXPECT_EQ(arithmetic["rows"][0]["trials"], 4);
  EXPECT_GE(arithmetic["accuracy"], 0.4);
  const Json tools = eval("tools --trials 4");
  EXPECT_EQ(tools["rows"].size(), 3U);
  EXPECT_GE(tools["accuracy"], 0.5);
  // The same questions again, and others with another seed.
  EXPECT_EQ(eval("tools --trials 4"), tools);
}

TEST(EvalCommand, PerplexityIsOfTheText) {
  const TempDirectory directory;
  const std::string known =
      directory.file("known", "You can install the package with the following command.");
  const std::string noise = directory.file("noise", "zq xv jj qq wk zx vv kq jx qz bq vx zj kk xq.");
  const Json of_known = eval("ppl " + known), of_noise = eval("ppl " + noise);
  EXPECT_EQ(of_known["bytes"], 55);
  EXPECT_LT(of_known["bits_per_byte"], 3);
  EXPECT_GT(of_noise["bits_per_byte"], of_known["bits_per_byte"]);
}

TEST(EvalCommand, RecallFindsWhatIsInTheWindow) {
  const Json recall = eval("recall --lengths 128 --depths 0.5,1 --trials 4");
  EXPECT_GE(recall["accuracy"], 0.5);
  EXPECT_EQ(eval("needle --lengths 256 --depths 0,1 --trials 1")["rows"].size(), 2U);
}

TEST(EvalCommand, BadInputGivesOneLine) {
  const auto empty = run_command("eval ppl /dev/null");
  EXPECT_EQ(empty.exit_code, 1);
  EXPECT_EQ(std::count(empty.err.begin(), empty.err.end(), '\n'), 1) << empty.err;
  const auto long_text = run_command("eval needle --lengths 4000000");
  EXPECT_EQ(long_text.exit_code, 1);
  EXPECT_THAT(long_text.err, HasSubstr("1048576"));
}

}  // namespace
}  // namespace hadal
