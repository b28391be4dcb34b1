#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace hadal {
namespace {

// The last entry that has begun at `step`.
template <class List>
std::size_t entry_at(const List& list, std::int64_t step) {
  std::size_t i = 0;
  while (i + 1 < list.size() && list[i + 1].from_step <= step) ++i;
  return i;
}

// Tokens of the steps [begin, end).
std::int64_t tokens_between(const TrainingRecipe& recipe, std::int64_t begin, std::int64_t end) {
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < recipe.batch.size(); ++i) {
    const std::int64_t from = std::max(begin, recipe.batch[i].from_step);
    const std::int64_t to = i + 1 < recipe.batch.size() ? std::min(end, recipe.batch[i + 1].from_step) : end;
    if (to > from) tokens += (to - from) * recipe.batch[i].tokens;
  }
  return tokens;
}

}  // namespace

double learning_rate_at(const TrainingRecipe& recipe, std::int64_t step) {
  const auto& lr = recipe.learning_rate;
  if (step < lr.warmup_steps)
    return lr.peak * static_cast<double>(step + 1) / static_cast<double>(lr.warmup_steps);
  if (step < lr.decay_from) return lr.peak;
  const std::int64_t last = recipe.steps - 1;
  const double done = last > lr.decay_from ? static_cast<double>(step - lr.decay_from) /
                                                 static_cast<double>(last - lr.decay_from)
                                           : 1;
  return lr.final + (lr.peak - lr.final) * 0.5 * (1 + std::cos(std::numbers::pi * done));
}

StepPlan plan_step(const TrainingRecipe& recipe, std::int64_t step) {
  StepPlan plan;
  plan.step = step;
  plan.stage = entry_at(recipe.stages, step);
  const RecipeStage& stage = recipe.stages[plan.stage];
  plan.length = stage.length;
  plan.sequences = recipe.batch[entry_at(recipe.batch, step)].tokens / stage.length;
  plan.micro_batch = recipe.micro_batch_tokens == 0
                         ? plan.sequences
                         : std::min(plan.sequences, recipe.micro_batch_tokens / stage.length);
  plan.first_sequence = tokens_between(recipe, stage.from_step, step) / stage.length;
  plan.tokens_before = tokens_between(recipe, 0, step);
  plan.attention = stage.attention;
  plan.learning_rate = stage.learning_rate != 0 ? stage.learning_rate : learning_rate_at(recipe, step);
  plan.mtp_weight = step < recipe.learning_rate.decay_from ? recipe.loss.mtp : recipe.loss.mtp_decay;
  plan.fp4 = recipe.fp4_from_step && step >= *recipe.fp4_from_step;
  return plan;
}

Config stage_config(const TrainingRecipe& recipe, std::size_t stage) {
  Config config = recipe.config;
  config.rope_scaling = recipe.stages[stage].yarn;
  return config;
}

}  // namespace hadal
