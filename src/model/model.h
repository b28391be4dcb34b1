// A loaded model: config, weights bound to a checkpoint, and what follows from the shapes. Immutable but for
// the cache of experts that a memory budget asks for, and shared by every forward that runs on it.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include <hadal/error.h>

#include "base/log.h"
#include "formats/checkpoint.h"
#include "model/config.h"
#include "model/expert_cache.h"
#include "model/memory_plan.h"
#include "model/parameters.h"
#include "model/rope.h"
#include "model/sequence_state.h"
#include "model/weight_check.h"

namespace hadal {

class Model {
 public:
  // A directory in Hugging Face layout. `notice` hears what was left out (a drafter) and why.
  static Result<Model> load(const std::filesystem::path& directory, const Notice& notice = {},
                            const MemoryBudget& memory = {}, const WeightCheck& check = {});
  // From a config and an open checkpoint, which the model keeps. With a memory budget the dense weights are
  // read into memory and routed experts stay on disk; the plan goes to `notice` before any of it is taken.
  static Result<Model> bind(Config config, Checkpoint checkpoint, const Notice& notice = {},
                            const MemoryBudget& memory = {}, const WeightCheck& check = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const Config& config() const;
  const Weights& weights() const;
  const Checkpoint& checkpoint() const;
  const StateLayout& state_layout(StateFormat format = StateFormat::f32) const;
  const RotaryFrequencies& sliding_frequencies() const;
  const RotaryFrequencies& compress_frequencies() const;
  void for_each_linear(const std::function<void(const Linear&)>& visit) const;
  // Whether any linear is stored in FP8 or FP4, so that `official` differs from `qsim`.
  bool quantised() const;
  // With a memory budget; else null. The cache serves one forward at a time.
  ExpertCache* expert_cache() const;
  const MemoryPlan* memory_plan() const;

 private:
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal
