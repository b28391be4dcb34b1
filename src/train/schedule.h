// What the recipe asks for at a step, as a pure function of the step: a resumed run asks again and gets the
// same.
#pragma once

#include <cstdint>

#include "train/recipe.h"

namespace hadal {

struct StepPlan {
  std::int64_t step = 0;
  std::size_t stage = 0;
  std::int64_t length = 0;          // tokens of a sequence
  std::int64_t sequences = 0;       // of the step
  std::int64_t micro_batch = 0;     // sequences of one forward and backward, at most
  std::int64_t first_sequence = 0;  // of the step, counted from the beginning of its stage
  std::int64_t tokens_before = 0;   // of all steps before this one
  double learning_rate = 0;
  double mtp_weight = 0;
  StageAttention attention = StageAttention::dense;
  bool fp4 = false;

  std::int64_t tokens() const { return sequences * length; }
};

// 0 <= step < recipe.steps.
StepPlan plan_step(const TrainingRecipe& recipe, std::int64_t step);

// Linear from peak / warmup_steps at step 0 to the peak, constant, from decay_from on a cosine that reaches
// the final value at the last step.
double learning_rate_at(const TrainingRecipe& recipe, std::int64_t step);

// The recipe's model as it is in a stage.
Config stage_config(const TrainingRecipe& recipe, std::size_t stage);

}  // namespace hadal
