// How fast a model can run on a machine: each class of ops takes as long as its bytes or its operations take,
// whichever is longer; several devices add what they say to one another (docs/plan.md).
#pragma once

#include <array>
#include <cstdint>

#include "plan/cost.h"
#include "plan/profile.h"

namespace hadal {

// One forward of the whole machine.
struct ForwardEstimate {
  std::array<double, kOpClasses> class_seconds{};
  double communication_seconds = 0;
  double other_seconds = 0;      // per layer and per token
  double seconds = 0;            // the sum of these
  double distinct_experts = 0;   // of a layer
  double tokens_per_expert = 0;  // of those that are hit

  double tokens_per_s = 0;
};

// Devices share routed experts (expert parallelism) and divide the sequences; where there are fewer sequences
// than devices, those that share one divide its matrices, too (tensor parallelism).
ForwardEstimate estimate_forward(const CostModel& model, const RowBytes& rows,
                                 const HardwareProfile& hardware, const ForwardShape& shape);

// Whole prompts of `context` tokens, one per device at a time, in forwards of `chunk`: the mean over the
// prompt.
double prompt_tokens_per_s(const CostModel& model, const RowBytes& rows, const HardwareProfile& hardware,
                           std::int64_t context, std::int64_t chunk);

// Bytes of one device.
struct DeviceMemory {
  double weights = 0;
  double state = 0;        // of its share of the sequences
  double activations = 0;  // intermediates of its share of a forward
  double capacity = 0;

  double used() const { return weights + state + activations; }
  bool fits() const { return used() <= capacity; }
};
DeviceMemory device_memory(const CostModel& model, const HardwareProfile& hardware, std::int64_t context,
                           std::int64_t sequences, std::int64_t chunk);
// Most sequences of `context` tokens that fit, 0 if not one does.
std::int64_t most_sequences(const CostModel& model, const HardwareProfile& hardware, std::int64_t context,
                            std::int64_t chunk);

}  // namespace hadal
