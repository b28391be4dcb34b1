// What the scheduler learns about the cost of steps.
#include "engine/step_cost.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace hadal {
namespace {

// A machine on which a step takes 10 ms, 0.5 ms for each sequence that decodes and 0.1 ms for a prompt token.
double machine(std::int64_t decoding, std::int64_t prompt) {
  return 0.010 + 0.0005 * static_cast<double>(decoding) + 0.0001 * static_cast<double>(prompt);
}

TEST(StepCost, WantsADecodeStepFirstAndNowAndThen) {
  StepCost cost;
  EXPECT_TRUE(cost.wants_decode_step());
  EXPECT_EQ(cost.decode_seconds(3), 0);
  cost.add(0, 512, 1.0);
  EXPECT_TRUE(cost.wants_decode_step()) << "a step that only reads says nothing of decoding";
  cost.add(1, 0, machine(1, 0));
  EXPECT_FALSE(cost.wants_decode_step());
  int mixed = 0;
  for (; !cost.wants_decode_step(); ++mixed) cost.add(1, 8, machine(1, 8));
  EXPECT_EQ(mixed, 32);
}

TEST(StepCost, OneNumberOfSequencesIsAConstant) {
  StepCost cost;
  for (int i = 0; i < 5; ++i) cost.add(4, 0, machine(4, 0));
  EXPECT_DOUBLE_EQ(cost.decode_seconds(4), machine(4, 0));
  EXPECT_DOUBLE_EQ(cost.decode_seconds(64), machine(4, 0)) << "nothing says that more cost more";
}

TEST(StepCost, FitsTheLineAndFollowsTheMachine) {
  StepCost cost;
  for (int i = 0; i < 40; ++i) cost.add(1 + i % 8, 0, machine(1 + i % 8, 0));
  EXPECT_NEAR(cost.decode_seconds(1), machine(1, 0), 1e-9);
  EXPECT_NEAR(cost.decode_seconds(64), machine(64, 0), 1e-9);
  for (int i = 0; i < 200; ++i) cost.add(1 + i % 8, 0, 3 * machine(1 + i % 8, 0));
  EXPECT_NEAR(cost.decode_seconds(64), 3 * machine(64, 0), 0.01 * machine(64, 0));
}

// Noise may tilt the line: it never falls with n, and is never next to nothing.
TEST(StepCost, NoiseMakesNoNonsense) {
  const Philox random(5, 0);
  for (std::uint64_t run = 0; run < 200; ++run) {
    StepCost cost;
    for (std::uint64_t i = 0; i < 12; ++i) {
      const auto block = random.block(run * 12 + i);
      const std::int64_t n = 1 + block[0] % 3;
      cost.add(n, 0, machine(n, 0) * (0.3 + 3e-9 * static_cast<double>(block[1])));
    }
    EXPECT_GE(cost.decode_seconds(1), 0.001);
    EXPECT_GE(cost.decode_seconds(64), cost.decode_seconds(1));
    EXPECT_GE(cost.grant(1, 0), 4);
  }
}

TEST(StepCost, GrantsWhatFitsAndGrowsInSteps) {
  StepCost cost;
  cost.add(1, 0, machine(1, 0));
  const double limit = 2 * machine(1, 0);  // leaves 105 tokens
  std::int64_t before = cost.grant(1, limit);
  EXPECT_EQ(before, 32);
  for (int i = 0; i < 20; ++i) {
    cost.add(1, before, machine(1, before));
    const std::int64_t next = cost.grant(1, limit);
    EXPECT_LE(next, before + before / 4 + 1);
    before = next;
  }
  EXPECT_NEAR(static_cast<double>(before), 105, 1);
  // A chunk that was cut short by its prompt's end says nothing about larger ones.
  cost.add(1, 3, machine(1, 3));
  EXPECT_NEAR(static_cast<double>(cost.grant(1, limit)), 105, 1);
  cost.add(1, 105, 20 * machine(1, 105));
  EXPECT_LT(cost.grant(1, limit), 25) << "a slow one is heeded at once";
}

}  // namespace
}  // namespace hadal
