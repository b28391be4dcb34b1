// Hardware profiles: the ones that come with hadal are complete, and a file that is not is refused by name.
#include "plan/profile.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "plan/plan.h"

namespace hadal {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

Json h200() {
  return Json::parse(profile_to_json(*load_profile("h200")));
}

void expect_refused(const Json& json, std::string_view part) {
  const auto profile = parse_profile(json.dump());
  ASSERT_FALSE(profile.has_value()) << "accepted, expected an error with: " << part;
  EXPECT_THAT(profile.error().message(), HasSubstr(part));
}

TEST(Profile, TheOnesThatComeWithHadalAreComplete) {
  const std::vector<std::string> names = profile_names();
  EXPECT_GE(names.size(), 11U);
  for (const std::string& name : names) {
    const auto profile = load_profile(name);
    ASSERT_TRUE(profile.has_value()) << name << ": " << profile.error().message();
    EXPECT_EQ(profile->name, name);
    EXPECT_FALSE(profile->source.empty());
    EXPECT_EQ(profile_to_json(*parse_profile(profile_to_json(*profile))), profile_to_json(*profile));
  }
}

TEST(Profile, EveryMissingFieldIsNamed) {
  const Json whole = h200();
  for (const auto& [key, value] : whole.items()) {
    Json json = whole;
    json.erase(key);
    expect_refused(json, "'" + key + "' is missing");
  }
}

TEST(Profile, WrongFieldsAreNamed) {
  const auto with = [](const char* key, const Json& value) {
    Json json = h200();
    json[key] = value;
    return json;
  };
  expect_refused(with("memory_gb", "141 GB"), "'memory_gb' is \"141 GB\", expected a number");
  expect_refused(with("memory_gbps", -1), "'memory_gbps' is -1, expected a number");
  expect_refused(with("fp8_tflops", 0), "'fp8_tflops' is 0");
  expect_refused(with("devices", 0), "'devices' is 0");
  expect_refused(with("devices", 1.5), "'devices' is 1.5, not a whole number");
  expect_refused(with("devices", 8), "'link_gbps' is 0, but there are 8 devices");
  expect_refused(with("attainable_memory", 1.5), "share of 1.5 is more than 1");
  expect_refused(with("name", 7), "'name' is not a string");
  expect_refused(with("classes", {{"magic", {{"gbps", 1}, {"gflops", 1}}}}), "'magic', which is no class");
  expect_refused(with("classes", {{"head", {{"gbps", 1}}}}), "classes.head: 'gflops' is missing");
  EXPECT_FALSE(parse_profile("[]").has_value());
  EXPECT_THAT(load_profile("h300").error().message(), HasSubstr("h200x8"));
}

TEST(Roofline, MemoryOrArithmeticWhicheverIsLonger) {
  // One class at a time: a machine that reads 1 GB/s, then one that multiplies 1 GFLOP/s.
  const CostModel model(*preset_config("flash"));
  const RowBytes rows = RowBytes::published(model.config());
  HardwareProfile slow_memory = *load_profile("h200"), slow_units = slow_memory;
  slow_memory.memory_gbps = slow_memory.attainable_memory = 1;
  slow_units.bf16_tflops = slow_units.fp8_tflops = slow_units.fp4_tflops = 1e-3;
  slow_memory.layer_us = slow_units.layer_us = 0;
  slow_units.attainable_compute = 1;
  const ForwardShape token{4095, 1, 1, 1};
  const TokenCost cost = model(rows, token);
  const double read = estimate_forward(model, rows, slow_memory, token).seconds;
  EXPECT_NEAR(read, (cost.bytes() - cost.embedding_bytes) / 1e9, 1e-3 * read);
  EXPECT_NEAR(estimate_forward(model, rows, slow_units, token).seconds, cost.flops() / 1e9, 1e-3);
  // Sixteen tokens share the dense weights, and some of the experts.
  const ForwardEstimate many = estimate_forward(model, rows, slow_memory, {4095, 16, 1, 1});
  EXPECT_LT(many.seconds, 16 * read / 1.5);
  EXPECT_NEAR(many.distinct_experts, model.distinct_experts(16), 1e-9);
}

TEST(Roofline, DevicesShareExpertsAndTalk) {
  const CostModel model(*preset_config("pro"));
  const HardwareProfile one = *load_profile("h200"), eight = *load_profile("h200x8");
  const DeviceMemory alone = device_memory(model, one, 1 << 20, 1, 4096),
                     shared = device_memory(model, eight, 1 << 20, 8, 4096);
  EXPECT_FALSE(alone.fits());
  EXPECT_TRUE(shared.fits());
  EXPECT_NEAR(shared.state, alone.state, 1);
  EXPECT_EQ(most_sequences(model, one, 1 << 20, 4096), 0);
  EXPECT_GE(most_sequences(model, eight, 1 << 20, 4096), 8);
  const RowBytes rows = RowBytes::published(model.config());
  EXPECT_EQ(estimate_forward(model, rows, one, {4095, 8, 1, 1}).communication_seconds, 0);
  EXPECT_GT(estimate_forward(model, rows, eight, {4095, 8, 1, 1}).communication_seconds, 1e-3);
}

// Decode of V4 that Huawei published for its 950DT: tokens per second and chip, at this many chips.
TEST(Roofline, PublishedAscendThroughputWithinAFactorOfTwo) {
  struct Published {
    const char *preset, *hardware;
    std::int64_t context, batch;  // batch: throughput x latency
    double tokens_per_s, devices;
  };
  for (const Published& p : {Published{"flash", "atlas-950x16", 8192, 256, 1821, 16},
                             Published{"flash", "atlas-950x16", 131072, 256, 1656, 16},
                             Published{"flash", "atlas-950x16", 1048576, 64, 423, 16},
                             Published{"pro", "atlas-950x64", 8192, 3072, 1727, 64}}) {
    PlanRequest request;
    request.context = p.context;
    request.batch = p.batch;
    const MachinePlan plan =
        plan_machine(CostModel(*preset_config(p.preset)), *load_profile(p.hardware), request);
    const double ratio = plan.decode.tokens_per_s / p.devices / p.tokens_per_s;
    EXPECT_GT(ratio, 0.5) << p.preset << " at " << p.context;
    EXPECT_LT(ratio, 2.0) << p.preset << " at " << p.context;
    EXPECT_TRUE(plan.memory.fits());
  }
}

TEST(Prices, FollowFromPowerPriceAndUtilisation) {
  HardwareProfile machine = *load_profile("h200");
  machine.price_usd = 0;
  machine.watts = 3600;  // 1 USD an hour at 1 USD a kWh is 1/1000 USD a second times 1/3.6
  Economics economics;
  economics.usd_per_kwh = 1;
  economics.utilisation = 1;
  EXPECT_NEAR(usd_per_second(machine, economics), 1e-3, 1e-12);
  const Config flash = *preset_config("flash");
  const TokenPrices full = own_prices(flash, machine, economics, 1 << 20, 1000, 100);
  EXPECT_NEAR(full.miss, 1, 1e-9);
  EXPECT_NEAR(full.output, 10, 1e-9);
  EXPECT_EQ(recomputed_tokens(flash), 5504);
  EXPECT_EQ(recomputed_tokens(*preset_config("pro")), 7808);
  EXPECT_NEAR(full.hit, 1e3 * 3514.25 / 10e9 + 5504.0 / (1 << 20), 1e-9);
  EXPECT_NEAR(full.input(0.25), 0.25 * full.hit + 0.75, 1e-9);
  economics.utilisation = 0.5;
  EXPECT_NEAR(own_prices(flash, machine, economics, 1 << 20, 1000, 100).miss, 2, 1e-9);
  EXPECT_EQ(price_history().size(), 4U);
}

}  // namespace
}  // namespace hadal
