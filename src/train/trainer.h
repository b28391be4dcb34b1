// The training loop over a run directory (train/snapshot.h). Everything that a step does is a function of the
// recipe, the data, the weights and moments, and the step's number: a run that was killed and resumed ends in
// the weights of one that was not, on any number of threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <hadal/error.h>

#include "base/log.h"
#include "base/thread_pool.h"
#include "dist/communicator.h"
#include "train/objective.h"
#include "train/parameter_set.h"
#include "train/recipe.h"
#include "train/run_directory.h"

namespace hadal {

struct TrainerOptions {
  std::filesystem::path run;
  bool resume = false;
  Notice notice;                                    // rollbacks, snapshots passed over
  std::function<void(const StepMetrics&)> on_step;  // after every step
  std::function<bool()> stop;                       // asked after every step; true: snapshot and return
  // The processes that share the run, all with the same recipe and directory; null: this one alone. Each
  // takes its part of every step's sequences and updates its part of the parameters; the first one writes.
  Communicator* communicator = nullptr;
  // For tests of what cannot be had to order: changes the losses and gradients that a step found.
  std::function<void(std::int64_t step, Losses& losses, ParameterSet& gradients)> tamper;
};

class Trainer {
 public:
  // Makes the run directory, or takes up the one there from its last sound snapshot. Errors: invalid_argument
  // (a run is there and `resume` is not set; another recipe than the run's; data that does not fit the
  // model), those of the data and of a checkpoint to start from, unsupported (Objective::create).
  static Result<Trainer> create(TrainingRecipe recipe, TrainerOptions options, ThreadPool& pool);
  Trainer(Trainer&&) noexcept;
  Trainer& operator=(Trainer&&) noexcept;
  ~Trainer();

  // Trains to the last step or until stop(); a snapshot is taken at the end. Errors: internal, for a loss or
  // gradient that is not finite, naming the first one; io, resource_exhausted. The last snapshot stays.
  Status run();

  std::int64_t step() const;  // the next one
  const ParameterSet& weights() const;
  const TrainingRecipe& recipe() const;
  std::int64_t memory() const;  // of weights, gradients, moments and activations, in bytes

  // Mean losses over the recipe's held-out windows, with the present weights.
  Result<Losses> evaluate();

 private:
  struct Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The recipe of a run directory and the weights of a snapshot of it (the last one if step < 0).
struct TrainedWeights {
  TrainingRecipe recipe;
  ParameterSet weights;
  std::int64_t step = 0;
};
Result<TrainedWeights> load_run(const std::filesystem::path& run, std::int64_t step = -1);

}  // namespace hadal
