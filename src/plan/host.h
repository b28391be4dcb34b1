// This machine as a hardware profile, measured by running layers of the model that is planned.
#pragma once

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

}  // namespace hadal
