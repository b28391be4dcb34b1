// The counts against the table of published ones (2 operations per multiply-add), to its printed digits.
#include "plan/cost.h"

#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "plan/plan.h"

namespace hadal {
namespace {

const CostModel& model(std::string_view preset) {
  static const CostModel kFlash(*preset_config("flash")), kPro(*preset_config("pro")),
      kV32(*preset_config("v3.2"));
  return preset == "flash" ? kFlash : preset == "pro" ? kPro : kV32;
}

TokenCost at_a_million(std::string_view preset) {
  return model(preset)(RowBytes::published(model(preset).config()), {(1 << 20) - 1, 1, 1, 1});
}

TEST(TokenCost, PlainCountsAtAMillionTokensAreThePublishedOnes) {
  struct Published {
    const char* preset;
    double total, index, attention, weights;  // GFLOP
  };
  for (const Published& p :
       {Published{"v3.2", 1157.7, 1048.0, 34.8, 74.9}, Published{"pro", 303.2, 128.8, 67.6 + 9.1, 97.7},
        Published{"flash", 140.3, 90.2, 21.8 + 1.8, 26.5}}) {
    const TokenCost cost = at_a_million(p.preset);
    const double index = cost[OpClass::index_scores].flops, attention = cost[OpClass::core_attention].flops;
    EXPECT_NEAR(cost.flops() / 1e9, p.total, 0.05) << p.preset;
    EXPECT_NEAR(index / 1e9, p.index, 0.06) << p.preset;
    EXPECT_NEAR(attention / 1e9, p.attention, 0.1) << p.preset;
    EXPECT_NEAR((cost.flops() - index - attention) / 1e9, p.weights, 0.06) << p.preset;
  }
}

TEST(TokenCost, TheHeadlineRatios) {
  const double baseline = at_a_million("v3.2").fp8_equivalent_flops();
  const CacheCost cache = cache_cost(model("v3.2").config());
  const auto kv = [&](const char* preset) {
    return cache_cost(model(preset).config()).bytes_at(1 << 20) / cache.bytes_at(1 << 20);
  };
  EXPECT_NEAR(at_a_million("pro").fp8_equivalent_flops() / baseline, 0.271, 0.0005);
  EXPECT_NEAR(at_a_million("flash").fp8_equivalent_flops() / baseline, 0.102, 0.0005);
  EXPECT_NEAR(kv("pro"), 0.1048, 5e-5);
  EXPECT_NEAR(kv("flash"), 0.0732, 5e-5);
}

// x rounded as the table prints it.
std::string digits(double x, int decimals) {
  return fmt::format("{:.{}f}", x, decimals);
}

TEST(TokenCost, TheWholeTable) {
  struct Row {
    std::int64_t context;
    const char *v32, *pro, *flash, *pro_percent, *flash_percent, *v32_kv, *pro_kv, *flash_kv;
  };
  constexpr Row kTable[] = {
      {4096, "0.151", "0.127", "0.034", "84", "22.6", "0.197", "0.025", "0.018"},
      {65536, "0.212", "0.139", "0.039", "65", "18.5", "3.150", "0.334", "0.234"},
      {131072, "0.278", "0.151", "0.045", "54", "16.1", "6.300", "0.664", "0.464"},
      {262144, "0.409", "0.176", "0.056", "43", "13.6", "12.60", "1.324", "0.924"},
      {524288, "0.671", "0.225", "0.078", "34", "11.6", "25.20", "2.642", "1.846"},
      {1048576, "1.195", "0.324", "0.122", "27.1", "10.2", "50.40", "5.280", "3.688"},
  };
  for (const Row& row : kTable) {
    const CurvePoint v32 = curve_point(model("v3.2"), row.context),
                     pro = curve_point(model("pro"), row.context),
                     flash = curve_point(model("flash"), row.context);
    const auto tera = [](const CurvePoint& p) { return digits(p.fp8_equivalent_flops / 1e12, 3); };
    const auto percent = [&](const CurvePoint& p, std::string_view printed) {
      const int decimals = printed.find('.') == printed.npos ? 0 : 1;
      return digits(100 * p.fp8_equivalent_flops / v32.fp8_equivalent_flops, decimals);
    };
    EXPECT_EQ(tera(v32), row.v32) << row.context;
    EXPECT_EQ(tera(pro), row.pro) << row.context;
    EXPECT_EQ(tera(flash), row.flash) << row.context;
    EXPECT_EQ(percent(pro, row.pro_percent), row.pro_percent) << row.context;
    EXPECT_EQ(percent(flash, row.flash_percent), row.flash_percent) << row.context;
    EXPECT_EQ(digits(v32.kv_bytes / 1e9, row.context >= 262144 ? 2 : 3), row.v32_kv) << row.context;
    EXPECT_EQ(digits(pro.kv_bytes / 1e9, 3), row.pro_kv) << row.context;
    EXPECT_EQ(digits(flash.kv_bytes / 1e9, 3), row.flash_kv) << row.context;
  }
}

TEST(TokenCost, BytesShareExpertsWithinABatch) {
  const RowBytes rows = RowBytes::of(StateLayout(model("flash").config(), StateFormat::compact));
  const TokenCost one = model("flash")(rows, {0, 1, 1, 1}), many = model("flash")(rows, {0, 1, 512, 1});
  // For one token alone, in GB: FP8 matrices 5.88, 6 of 256 FP4 experts with their scales 3.45, BF16 without
  // the embedding 1.77, float32 mixers 0.14.
  EXPECT_NEAR(one.weight_bytes() / 1e9, 11.2, 0.1);
  // 512 tokens hit every expert: the whole model, once.
  EXPECT_NEAR(many.weight_bytes() * 512 / 1e9, 156, 4);
}

TEST(TokenCost, ExpertReuseIsThatOfIndependentDraws) {
  const CostModel& flash = model("flash");  // 6 of 256
  EXPECT_NEAR(flash.distinct_experts(1), 6, 1e-9);
  EXPECT_NEAR(flash.distinct_experts(2), 12 - 36.0 / 256, 1e-9);
  EXPECT_NEAR(flash.distinct_experts(100000), 256, 1e-9);
}

}  // namespace
}  // namespace hadal
