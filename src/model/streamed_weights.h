// The weights of a model under a memory budget: dense ones read into memory, routed experts left on disk for
// the cache to fetch. Nothing stays bound to the mapped files.
#pragma once

#include <memory>
#include <vector>

#include <hadal/error.h>

#include "base/anonymous_memory.h"
#include "base/log.h"
#include "formats/checkpoint.h"
#include "model/config.h"
#include "model/expert_cache.h"
#include "model/memory_plan.h"
#include "model/parameters.h"

namespace hadal {

struct StreamedWeights {
  MemoryPlan plan;
  AnonymousMemory dense;  // what the weights' pointers point into
  std::unique_ptr<ExpertCache> experts;

  // `weights` are bound to `checkpoint`; afterwards to the result, and its experts have no weights. Errors:
  // invalid_argument for a checkpoint that is no file, resource_exhausted for too small a budget, io.
  static Result<StreamedWeights> take(const Config& config, const StateLayout& layout,
                                      const Checkpoint& checkpoint, const MemoryBudget& budget,
                                      const Notice& notice, Weights& weights);
};

}  // namespace hadal
