// hadal bench: the fields that outside checks read, on a tiny model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_command.h"
#include "golden_data.h"

namespace hadal {
namespace {

TEST(BenchCommand, JsonHasTheContractsFields) {
  const std::string model = (test::reference_directory() / "models" / "t1-m2").string();
  const auto result =
      run_command("bench -m " + model + " --context 0,700,1024 --prefill 32 --decode 3 --batch 2 --json");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  for (const char* key : {"read_gbps", "peak_gflops"}) EXPECT_GT(json.at(key).get<double>(), 0.1) << key;
  EXPECT_GE(json.at("int8_gops").get<double>(), 0);  // 0 where there are no dot products of bytes
  EXPECT_GE(json.at("threads").get<int>(), 1);
  EXPECT_THAT(json.at("isa").get<std::string>(), testing::StartsWith("cpu-"));
  ASSERT_EQ(json.at("rows").size(), 6U);
  for (const auto& row : json.at("rows")) {
    for (const char* key :
         {"tokens_per_s", "bytes_per_token", "bandwidth_fraction", "flops_per_token", "peak_fraction"}) {
      EXPECT_GT(row.at(key).get<double>(), 0) << key;
    }
    EXPECT_EQ(row.at("batch"), row.at("phase") == "decode" ? 2 : 1);
  }
  // More context means more work.
  EXPECT_GT(json["rows"][2]["flops_per_token"].get<double>(),
            json["rows"][0]["flops_per_token"].get<double>());
}

TEST(BenchCommand, WithoutAModelItIsTheEmbeddedOne) {
  const auto result = run_command("bench --prefill 16 --decode 2 --json");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(nlohmann::json::parse(result.out).at("rows").size(), 2U);
}

TEST(BenchCommand, ProfileAddsUpToTheForward) {
  const std::string model = (test::reference_directory() / "models" / "t1-m2").string();
  const auto result =
      run_command("bench -m " + model + " --prefill 64 --chunk 32 --decode 3 --profile --json");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  ASSERT_EQ(json.at("profile").size(), 2U);
  for (const auto& profile : json.at("profile")) {
    const bool decoding = profile.at("phase") == "decode";
    EXPECT_EQ(profile.at("forwards"), decoding ? 3 : 2);
    double seconds = 0, calls_of_wq_a = 0;
    bool experts_read_weights = false;
    for (const auto& op : profile.at("ops")) {
      seconds += op.at("seconds").get<double>();
      if (op.at("parameter") == "attn.wq_a") calls_of_wq_a = op.at("calls");
      if (op.at("op") == "experts") experts_read_weights = op.at("weight_gbps") > 0 && op.at("gflops") > 0;
    }
    EXPECT_EQ(calls_of_wq_a, 7);  // once a layer
    EXPECT_TRUE(experts_read_weights);
    EXPECT_NEAR(seconds, profile.at("seconds").get<double>(), 1e-9);
    EXPECT_EQ(profile.at("ops").back().at("op"), "between ops");
    EXPECT_GT(profile.at("ops").back().at("seconds").get<double>(), 0);
  }
}

TEST(BenchCommand, SaysWhatTheDiskAllowsUnderABudget) {
  const std::string model = (test::reference_directory() / "models" / "t1-m2").string();
  const auto result = run_command("bench -m " + model + " --prefill 32 --decode 3 --memory 900M --json");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, testing::HasSubstr("memory: 0.9 GB = "));
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json.at("memory").at("budget"), 900'000'000);
  EXPECT_LT(json["memory"].at("peak").get<double>(), 1.05 * 900e6);
  for (const auto& row : json.at("rows")) {
    for (const char* key :
         {"hits", "prefetch_hits", "misses", "bytes_read", "predicted_right", "disk_fraction"})
      EXPECT_GE(row.at("disk").at(key).get<double>(), 0) << key;
    EXPECT_GT(row["disk"].at("disk_gbps").get<double>(), 0);
  }
  const auto too_small = run_command("bench -m " + model + " --prefill 32 --memory 100M");
  EXPECT_EQ(too_small.exit_code, 1);
  EXPECT_THAT(too_small.err, testing::HasSubstr("is the least that works here"));
  EXPECT_EQ(run_command("bench --preset flash --memory 4G").exit_code, 1);
  EXPECT_EQ(run_command("bench -m " + model + " --memory much").exit_code, 2);
}

TEST(BenchCommand, TakesOneModelOfThoseThatThereAre) {
  EXPECT_EQ(run_command("bench -m somewhere --preset flash").exit_code, 1);
  EXPECT_EQ(run_command("bench --preset nano").exit_code, 1);
  EXPECT_EQ(run_command("bench --preset flash --layers 44").exit_code, 1);
}

}  // namespace
}  // namespace hadal
