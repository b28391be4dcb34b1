#include "train/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/schedule.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

using test::tiny_recipe;

TrainingRecipe parsed(std::int64_t steps, const std::string& extra = "") {
  auto recipe = parse_recipe(tiny_recipe("/tmp", steps, extra), "/tmp");
  EXPECT_TRUE(recipe.has_value()) << recipe.error().message();
  return std::move(*recipe);
}

// The tiny recipe with one piece of its text replaced.
std::string problem(const std::string& from, const std::string& to) {
  std::string text = tiny_recipe("/tmp", 30);
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  const auto recipe = parse_recipe(text, "/tmp");
  return recipe ? "accepted" : recipe.error().message();
}

TEST(Recipe, UsedRecipeParsesToItself) {
  const std::string text =
      parsed(30, R"(, "fp4_from_step": 3, "expert_parallel": true, "initial": {"comb": "uniform"})")
          .to_json();
  const auto again = parse_recipe(text, "/");
  ASSERT_TRUE(again.has_value()) << again.error().message();
  EXPECT_EQ(again->to_json(), text);
}

TEST(Recipe, WhatIsWrongIsNamed) {
  EXPECT_EQ(problem(R"("peak")", R"("peek")"),
            "learning_rate.peek is not a field; allowed: peak, final, warmup_steps, decay_from");
  EXPECT_EQ(problem(R"("steps": 30)", R"("steps": 0)"), "steps is 0, expected an integer of at least 1");
  EXPECT_EQ(problem(R"("seed": 5)", R"("sead": 5)").substr(0, 33), "sead is not a field; allowed: nam");
  EXPECT_EQ(problem(R"("steps": 30)", R"("stepz": 30)").substr(0, 33), "stepz is not a field; allowed: na");
  EXPECT_EQ(problem(R"("steps": 30,)", ""), "steps is missing");
  EXPECT_EQ(problem(R"("seed": 5)", R"("seed": 5, "expert_parallel": 1)"),
            "expert_parallel is 1, expected true or false");
  EXPECT_EQ(problem(R"("precision": "f32")", R"("precision": "f64")"),
            R"(precision is "f64", expected one of "f32", "bf16")");
  EXPECT_EQ(problem(R"("from_step": 12, "length": 16)", R"("from_step": 12, "length": 17)"),
            "batch[1].tokens is 32, not a whole number of sequences of stages[2].length, 17");
  EXPECT_EQ(problem(R"("from_step": 10, "length": 8)", R"("from_step": 0, "length": 8)"),
            "stages[1].from_step is 0, expected more than the 0 before it");
  EXPECT_EQ(problem(R"("from_step": 12)", R"("from_step": 40)"),
            "stages[2].from_step is 40, but the run has 30 steps");
  EXPECT_EQ(problem(R"([0, 4, 16, 0])", R"([0, 16, 16, 0])"),
            R"(stages[1].attention is "indexer", but no layer of the model has one (compress ratio 4))");
  EXPECT_EQ(problem(R"("length": 8})", R"("length": 8, "learning_rate": 0.1})"),
            R"(stages[0].learning_rate is for "indexer" stages; the others follow learning_rate)");
  EXPECT_EQ(
      problem(R"("length": 16, "attention")", R"("length": 16, "yarn": {"factr": 2}, "attention")"),
      "stages[2].yarn.factr is not a field; allowed: factor, original_max_position_embeddings, beta_fast, "
      "beta_slow");
  EXPECT_EQ(problem(R"("length": 16)", R"("length": 2048)"),
            "stages[2].length is 2048, more than the model's max_position_embeddings of 1024");
  EXPECT_EQ(problem(R"("micro_batch_tokens": 16)", R"("micro_batch_tokens": 10)"),
            "micro_batch_tokens is 10, less than one sequence of stages[2].length, 16");
  EXPECT_EQ(problem(R"("newton_schulz": "f32")", R"("kind": "adamw", "gamma": 1)"),
            R"(optimizer.gamma is Muon's, but optimizer.kind is "adamw")");
  EXPECT_EQ(problem(R"("peak": 0.003)", R"("peak": 0.003, "final": 0.1)"),
            "learning_rate.final is 0.1, more than learning_rate.peak, 0.003");
  EXPECT_EQ(
      problem(R"("warmup_steps": 2)", R"("warmup_steps": 40)"),
      "learning_rate: warm-up of 40 steps, decay from step 30, 30 steps in all; expected warmup_steps <= "
      "decay_from <= steps");
  EXPECT_EQ(problem(R"("windows": 2})", R"("windows": 3}, "anticipatory_routing": {"mode": "after_spike"})"),
            R"(anticipatory_routing.mode is "after_spike", but spike.rise is 0: no spike is ever detected)");
  EXPECT_EQ(problem(R"("moe_intermediate_size": 64)", R"("moe_intermediate_size": 48)"), "accepted");
  EXPECT_EQ(parse_recipe(std::string(tiny_recipe("/tmp", 30, R"(, "fp4_from_step": 5)"))
                             .replace(tiny_recipe("/tmp", 30).find(R"("moe_intermediate_size": 64)"), 27,
                                      R"("moe_intermediate_size": 48)"),
                         "/tmp")
                .error()
                .message(),
            "fp4_from_step: FP4 has one scale for 32 numbers, but hidden_size is 64 and "
            "moe_intermediate_size 48");
  EXPECT_EQ(problem(R"({"config")", R"({"preset": "flash", "config")"),
            "model has 2 of preset, config, config_file and checkpoint, expected exactly one");
  EXPECT_EQ(problem(R"("hidden_size": 64)", R"("hidden_size": 0)").substr(0, 13), "model.config:");
  EXPECT_EQ(problem(R"([{"path")", R"([{"weight": 0.5}, {"path")"), "data.train[0].path is missing");
  EXPECT_THAT(problem(R"("name")", R"(name)"), testing::HasSubstr("not JSON"));
}

TEST(Schedule, LearningRate) {
  TrainingRecipe recipe = parsed(100, R"()");
  recipe.learning_rate = {2.7e-4, 2.7e-5, 10, 50};
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 0), 2.7e-5);
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 9), 2.7e-4);
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 49), 2.7e-4);
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 50), 2.7e-4);
  EXPECT_NEAR(learning_rate_at(recipe, 74), (2.7e-4 + 2.7e-5) / 2, 5e-6);
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 99), 2.7e-5);
}

TEST(Schedule, StepsFollowEachOtherWithoutGapsInTheData) {
  const TrainingRecipe recipe = parsed(30);
  std::int64_t tokens = 0, next = 0;
  std::size_t stage = 0;
  for (std::int64_t step = 0; step < 30; ++step) {
    const StepPlan plan = plan_step(recipe, step);
    if (plan.stage != stage) next = 0;
    stage = plan.stage;
    EXPECT_EQ(plan.first_sequence, next) << step;
    EXPECT_EQ(plan.tokens_before, tokens) << step;
    EXPECT_EQ(plan.tokens(), step < 2 ? 16 : 32) << step;
    EXPECT_EQ(plan.length, step < 12 ? 8 : 16) << step;
    next += plan.sequences;
    tokens += plan.tokens();
  }
  EXPECT_EQ(plan_step(recipe, 11).attention, StageAttention::indexer);
  EXPECT_DOUBLE_EQ(plan_step(recipe, 11).learning_rate, 0.001);
  EXPECT_EQ(plan_step(recipe, 12).attention, StageAttention::sparse);
  EXPECT_EQ(plan_step(recipe, 5).micro_batch, 2);
}

TEST(Schedule, MtpWeightFp4AndYarn) {
  TrainingRecipe recipe = parsed(30, R"(, "fp4_from_step": 20)");
  recipe.learning_rate.decay_from = 25;
  recipe.stages[0].yarn.reset();
  recipe.stages[2].yarn = YarnScaling{4, 256, 32, 1};
  EXPECT_DOUBLE_EQ(plan_step(recipe, 24).mtp_weight, 0.3);
  EXPECT_DOUBLE_EQ(plan_step(recipe, 25).mtp_weight, 0.1);
  EXPECT_FALSE(plan_step(recipe, 19).fp4);
  EXPECT_TRUE(plan_step(recipe, 20).fp4);
  EXPECT_FALSE(stage_config(recipe, 0).rope_scaling.has_value());
  EXPECT_DOUBLE_EQ(stage_config(recipe, 2).rope_scaling->factor, 4);
}

}  // namespace
}  // namespace hadal
