// hadal bench --compare: decode of two models with layers of their true shapes, side by side (docs/plan.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <hadal/error.h>

#include "base/thread_pool.h"
#include "model/forward.h"
#include "ops/backend.h"

namespace hadal::cli {

struct CompareRequest {
  std::vector<std::string> presets = {"flash", "pro"};
  std::string baseline = "v3.2";
  std::vector<std::int64_t> contexts = {4096, 65536, 262144, 1048576};
  std::int64_t steps = 8;  // of each layer at each depth; the median counts
  Numerics numerics = Numerics::official;
  bool json = false;
};

// One layer of each kind is run, 16 routed experts and a part of the vocabulary, one model after the other;
// times and operations are multiplied by how many such layers the model has. Prints the report.
Status compare_models(const CompareRequest& request, Backend& backend, ThreadPool& pool);

}  // namespace hadal::cli
