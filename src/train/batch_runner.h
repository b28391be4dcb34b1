// The forwards and backwards of a step or an evaluation: which sequences, cut into how many batches, on which
// rank, and what their losses and gradients come to together.
//
// A step's sequences are cut into parts (recipe.gradient_parts, or one per rank), a part into micro-batches.
// Gradients add up within a part as they come; parts are then added in ascending order. So what a step gives
// is a function of the number of parts: one process with two parts has the bits of two processes.
#pragma once

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
  // The parts of this rank, [first, last), and the sequences of one.
  std::pair<std::int64_t, std::int64_t> own_parts() const;
  std::pair<std::int64_t, std::int64_t> part(const StepPlan& plan, std::int64_t i) const;
  void run_part(const StepPlan& plan, std::span<const Batch> batches, std::span<const double> of_step,
                const ParameterSet& weights, std::span<const std::int32_t>& routing, ParameterSet& gradients,
                std::vector<double>& losses, StepGradient& result);

  const TrainingRecipe* recipe_;
  Communicator* ranks_;
  ThreadPool* pool_;
  std::int64_t n_parts_;
  TrainingData data_;
  std::optional<TrainingData> validation_;
  std::optional<Objective> objective_;
  std::size_t objective_stage_ = 0;
  std::optional<ParameterSet> of_part_;  // the gradient of a part, where one process has several
};

// Sums over the ranks, in the order of ranks.
std::vector<double> sum_over_ranks(Communicator& ranks, std::span<const double> values);

}  // namespace hadal
