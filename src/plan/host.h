// This machine as a hardware profile, measured by running layers of the model that is planned.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include <hadal/error.h>

#include "base/thread_pool.h"
#include "model/config.h"
#include "model/forward.h"
#include "ops/backend.h"
#include "ops/profile.h"
#include "plan/cost.h"
#include "plan/profile.h"

namespace hadal {

// The class that an op's products are counted in; nothing for ops that are none. Routed and shared experts
// run as one op and count as experts.
std::optional<OpClass> class_of(const OpWork& work);

// One layer of each kind that `config` has, with few experts and a small vocabulary: what is timed, and what
// `hadal bench --compare` times too.
Config layers_of_each_kind(const Config& config, std::int64_t experts, std::int64_t vocab_size);

// Limits from ReadBandwidth and measure_arithmetic; the rate of each class from decode steps (bytes) and from
// a prompt (operations) of these layers behind 32K tokens of context. Price and power are not measured: 0.
Result<HardwareProfile> measure_host(const Config& config, Numerics numerics, Backend& backend,
                                     ThreadPool& pool);

// Tokens per second of these layers and this vocabulary, as run and as planned from rates that were measured
// in turn with them behind 32K tokens: decode of one sequence, and 256 tokens of a prompt.
struct HostCheck {
  std::int64_t context = 0;
  double decode = 0, planned_decode = 0;
  double prefill = 0, planned_prefill = 0;
};
Result<std::vector<HostCheck>> check_host(const Config& config, std::span<const std::int64_t> contexts,
                                          Numerics numerics, Backend& backend, ThreadPool& pool);

}  // namespace hadal
