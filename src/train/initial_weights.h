// Where training from scratch starts. Every value is a pure function of (seed, name of the parameter, index).
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "train/parameter_set.h"
#include "train/recipe.h"

namespace hadal {

// Matrices: normal with variance 1 / inputs (wo_b and w2 times initial.output); embedding and head: normal
// with the recipe's deviations; RMSNorm weights one; position biases, sinks and router biases zero. mHC:
// scales 0.01, bases such that at scale 0 pre is 1/n for every stream, post is 1, and comb is either 0.9 on
// the diagonal or 1/n everywhere. Hash tables: num_experts_per_tok distinct experts for every token, from a
// hash that does not depend on the seed.
ParameterSet initial_weights(const TrainingRecipe& recipe, ThreadPool& pool, ExpertPlacement placement = {});

}  // namespace hadal
