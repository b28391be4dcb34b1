// The cost of a token against the table of published counts (2 operations per multiply-add, at 1M tokens).
#include "plan/cost.h"

#include <gtest/gtest.h>

namespace hadal {
namespace {

TEST(TokenCost, ReproducesThePublishedCountsAtAMillionTokens) {
  struct Published {
    const char* preset;
    double index, attention, weights;  // GFLOP
  };
  for (const Published& p :
       {Published{"flash", 90.2, 21.8 + 1.8, 26.5}, Published{"pro", 128.8, 67.6 + 9.1, 97.7}}) {
    const auto config = preset_config(p.preset);
    ASSERT_TRUE(config.has_value());
    const TokenCost cost = token_cost(*config, StateLayout(*config), (std::int64_t{1} << 20) - 1, 1, 1);
    EXPECT_NEAR(cost.index_flops / 1e9, p.index, 0.01 * p.index) << p.preset;
    EXPECT_NEAR(cost.attention_flops / 1e9, p.attention, 0.02 * p.attention) << p.preset;
    EXPECT_NEAR(cost.weight_flops / 1e9, p.weights, 0.01 * p.weights) << p.preset;
  }
}

TEST(TokenCost, BytesShareExpertsWithinABatch) {
  const auto config = preset_config("flash");
  const StateLayout layout(*config);
  const TokenCost one = token_cost(*config, layout, 0, 1, 1), many = token_cost(*config, layout, 0, 512, 1);
  // For one token alone, in GB: FP8 matrices 5.88, 6 of 256 FP4 experts with their scales 3.45, BF16 without
  // the embedding 1.77, float32 mixers 0.14.
  EXPECT_NEAR(one.weight_bytes / 1e9, 11.2, 0.1);
  // 512 tokens hit every expert: the whole model, once.
  EXPECT_NEAR(many.weight_bytes * 512 / 1e9, 156, 4);
}

}  // namespace
}  // namespace hadal
