// The forwards and backwards of a step or an evaluation: which sequences, cut into how many batches, on which
// rank, and what their losses and gradients come to together.
//
// A step's sequences are cut into parts (recipe.gradient_parts, or one per rank), a part into micro-batches.
// Gradients add up within a part as they come; parts are then added in ascending order. Those of routed
// experts that are parallel (recipe.expert_parallel) have no parts: their owner adds up micro-batch after
// micro-batch of all ranks, and one process takes the micro-batches of its parts in the same order. So what a
// step gives is a function of the recipe: one process with two parts has the bits of two processes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <hadal/error.h>

#include "base/thread_pool.h"
#include "dist/communicator.h"
#include "train/data.h"
#include "train/objective.h"
#include "train/parameter_set.h"
#include "train/recipe.h"
#include "train/schedule.h"

namespace hadal {

struct StepGradient {
  Losses losses;
  std::vector<std::int64_t> load;  // [num_blocks, n_routed_experts]
  MixingSums mixing;
};

class BatchRunner {
 public:
  // Errors: those of the data; invalid_argument for data that does not fit the model or the lengths, and for
  // a number of ranks that the recipe cannot be shared by.
  static Result<BatchRunner> create(const TrainingRecipe& recipe, Communicator& ranks, ThreadPool& pool);

  // Before anything else of a step. Error: that of Objective::create.
  Status prepare(const StepPlan& plan);

  // The step's losses, and its gradient, which replaces what was in `gradients`. Of several ranks each has
  // the gradient of the shards it owns, and zero elsewhere. `routing`: where its tokens go, as route() gave
  // it for this step; empty: the router's choice.
  StepGradient forward_backward(const StepPlan& plan, const ParameterSet& weights,
                                std::span<const std::int32_t> routing, std::span<const Shard> shards,
                                ParameterSet& gradients);
  // Where the tokens of a step go by these weights: the routings of its forwards, one behind the other.
  std::vector<std::int32_t> route(const StepPlan& plan, const ParameterSet& weights);

  bool has_validation() const { return validation_.has_value(); }
  // Mean losses over the held-out windows.
  Losses evaluate(const StepPlan& plan, const ParameterSet& weights);

  std::int64_t memory() const;  // in bytes

 private:
  // What one forward takes.
  struct Batch {
    std::int64_t size = 0;
    std::vector<std::int32_t> tokens;  // [size, length + ahead]
    std::vector<std::uint8_t> counts;  // likewise, or empty
    std::int64_t n_tokens = 0;         // whose prediction counts
    std::int64_t n_mtp_tokens = 0;
  };

  BatchRunner(const TrainingRecipe& recipe, Communicator& ranks, ThreadPool& pool, TrainingData data);
  template <class Read>
  Batch read_batch(std::int64_t size, std::int64_t length, bool masked, Read&& read) const;
  Batch training_batch(const StepPlan& plan, std::int64_t first, std::int64_t size) const;
  static TrainingBatch view(const Batch& batch, std::int64_t length);
  // Sequences of a step that one forward and backward takes.
  struct Slice {
    std::int64_t part = 0, first = 0, size = 0;
    bool opens = false, closes = false;  // the first of its part, the last of it
  };
  std::pair<std::int64_t, std::int64_t> own_parts() const;  // of this rank, [first, last)
  std::vector<Slice> slices(const StepPlan& plan) const;  // of this rank, in the order in which it takes them
  ParameterSet& gradient_of_part(std::int64_t part) {     // not the first
    return of_parts_[std::min(static_cast<std::size_t>(part), of_parts_.size()) - 1];
  }
  void run_batch(const StepPlan& plan, const Batch& batch, std::span<const double> of_step,
                 const ParameterSet& weights, std::span<const std::int32_t>& routing, ParameterSet& gradients,
                 ParameterSet& expert_gradients, std::vector<double>& losses, StepGradient& result);

  const TrainingRecipe* recipe_;
  Communicator* ranks_;
  ThreadPool* pool_;
  std::int64_t n_parts_;
  TrainingData data_;
  std::optional<TrainingData> validation_;
  std::optional<Objective> objective_;
  std::size_t objective_stage_ = 0;
  // Where one process has several parts, the gradients of all but the first: one set that they use in turn,
  // or where experts are parallel one of each, without experts.
  std::vector<ParameterSet> of_parts_;
};

// Sums over the ranks, in the order of ranks.
std::vector<double> sum_over_ranks(Communicator& ranks, std::span<const double> values);

}  // namespace hadal
