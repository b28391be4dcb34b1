// hadal plan as a user runs it: the contract's fields, the headline, bad input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_command.h"

namespace hadal {
namespace {

using json = nlohmann::json;
using testing::HasSubstr;

json plan(const std::string& arguments) {
  const CommandResult result = run_command("plan --json " + arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

TEST(Plan, TheHeadline) {
  const json pro = plan("--preset pro --context 1048576 --against v3.2");
  EXPECT_NEAR(pro["flops_ratio"].get<double>(), 0.271, 0.003);
  EXPECT_NEAR(pro["kv_ratio"].get<double>(), 0.1048, 0.0005);
  const json flash = plan("--preset flash --context 1M --against v3.2");
  EXPECT_NEAR(flash["flops_ratio"].get<double>(), 0.102, 0.002);
  EXPECT_NEAR(flash["kv_ratio"].get<double>(), 0.0732, 0.0005);
  EXPECT_NEAR(flash["flops_per_token"].get<double>(), 140.3e9, 0.1e9);
  EXPECT_EQ(flash["weights_bytes"], 159609485896);
  EXPECT_EQ(flash["against"]["kv_bytes"], 48068.0 * 1048576);
  double flops = 0;
  for (const auto& [name, cost] : flash["classes"].items()) flops += cost["flops"].get<double>();
  EXPECT_NEAR(flops, flash["flops_per_token"].get<double>(), 1);
  for (const char* field : {"fp8_equivalent_flops_per_token", "decode", "prefill", "prompt_tokens_per_s",
                            "usd_per_million_tokens", "deepseek_usd_per_million_tokens", "fits", "curve"})
    EXPECT_TRUE(flash.contains(field)) << field;
}

TEST(Plan, TextAndReport) {
  const TempDirectory dir;
  const std::string html = dir.path() + "/report.html";
  const CommandResult result = run_command(
      "plan --preset flash --context 1M --against v3.2 --hit-rate 0.9 "
      "--hardware ascend-950dt --html '" +
      html + "'");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("10.2% of the FLOPs"));
  EXPECT_THAT(result.out, HasSubstr("DOES NOT FIT"));
  EXPECT_THAT(result.out, HasSubstr("from 2026-08-16   Flash 0.007 / 0.22 / 0.66"));
  std::ostringstream report;
  report << std::ifstream(html).rdbuf();
  std::size_t lines = 0;
  for (std::size_t at = 0; (at = report.str().find("<polyline", at)) != std::string::npos; ++at) ++lines;
  EXPECT_EQ(lines, 4U);  // two models in two charts
  EXPECT_THAT(report.str(), testing::Not(HasSubstr("<script")));
}

TEST(Plan, AUsersHardware) {
  const TempDirectory dir;
  const CommandResult saved =
      run_command("plan --preset flash --hardware h200 --save-hardware '" + dir.path() + "/own.json'");
  ASSERT_EQ(saved.exit_code, 0) << saved.err;
  EXPECT_EQ(plan("--preset flash --hardware '" + dir.path() + "/own.json'")["hardware"]["memory_gb"], 141);
  const std::string broken = dir.file("broken.json", R"({"name": "x", "title": "x", "source": "x"})");
  const CommandResult refused = run_command("plan --preset flash --hardware '" + broken + "'");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("broken.json: 'devices' is missing"));
}

TEST(Plan, BadInput) {
  EXPECT_EQ(run_command("plan").exit_code, 2);
  EXPECT_EQ(run_command("plan --preset medium").exit_code, 2);
  EXPECT_EQ(run_command("plan --preset flash --context 12parsecs").exit_code, 2);
  EXPECT_EQ(run_command("plan --preset flash --context 0").exit_code, 2);
  EXPECT_EQ(run_command("plan --preset flash --hit-rate 1.5").exit_code, 2);
  const CommandResult unknown = run_command("plan --preset flash --hardware abacus");
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("hardware 'abacus' is neither a file that can be read nor one of"));
  const CommandResult layers = run_command("plan --preset flash --layers 44");
  EXPECT_EQ(layers.exit_code, 1);
  EXPECT_THAT(layers.err, HasSubstr("44 layers: the model has 43"));
  EXPECT_THAT(run_command("plan --preset flash --experts 3").err, HasSubstr("sends a token to 6 of them"));
  EXPECT_THAT(run_command("plan --help").out, HasSubstr("Example"));
}

}  // namespace
}  // namespace hadal
