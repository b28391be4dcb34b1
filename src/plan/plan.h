// hadal plan: what a model costs to hold and to run, counted (docs/plan.md).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "plan/cost.h"
#include "plan/prices.h"
#include "plan/profile.h"
#include "plan/roofline.h"

namespace hadal {

struct PlanRequest {
  std::int64_t context = 131072;  // tokens of a sequence, the decoded one among them
  std::int64_t batch = 0;  // sequences that decode together; 0: as many as fit, at most kMostPerDevice each
  std::int64_t chunk = 4096;  // tokens of a forward of a prompt
  double hit_rate = 0.5;      // of prompt tokens, in the prefix cache
  Economics economics;

  static constexpr std::int64_t kMostPerDevice = 128;
};

// One model at one context, whatever runs it.
struct ModelPlan {
  std::string name;
  ParameterCount parameters;
  double weights_bytes = 0;   // of the checkpoint, MTP blocks included
  double kv_bytes = 0;        // of one sequence in the published formats, windows included
  double hadal_kv_bytes = 0;  // as this build keeps them
  TokenCost cost;             // of one token decoded alone
};
ModelPlan plan_model(const std::string& name, const CostModel& model, std::int64_t context);

// The figure's curves: FLOPs and cache against the context.
struct CurvePoint {
  std::int64_t context = 0;
  double flops = 0, fp8_equivalent_flops = 0, kv_bytes = 0;
};
CurvePoint curve_point(const CostModel& model, std::int64_t context);
// 4K, 64K, 128K, 256K, 512K, 1M.
inline constexpr std::array<std::int64_t, 6> kTableContexts = {4096, 65536, 131072, 262144, 524288, 1048576};

// The same on a machine.
struct MachinePlan {
  std::int64_t batch = 0;  // as asked for, or chosen
  std::int64_t most_sequences = 0;
  DeviceMemory memory;
  ForwardEstimate decode, prefill;  // a step; a chunk at the end of the context
  double prompt_tokens_per_s = 0;   // whole prompts of the context
  TokenPrices prices;
};
MachinePlan plan_machine(const CostModel& model, const HardwareProfile& hardware, const PlanRequest& request);

}  // namespace hadal
