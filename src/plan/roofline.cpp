#include "plan/roofline.h"

#include <algorithm>

namespace hadal {
namespace {

double as_double(std::int64_t n) {
  return static_cast<double>(n);
}

// Devices that share the work of one sequence.
double sharers(const HardwareProfile& hardware, std::int64_t sequences) {
  return as_double(hardware.devices) / as_double(std::min(hardware.devices, sequences));
}

// Per layer: each token's input goes to the devices of its experts in FP8 and their outputs come back in
// BF16; sharers of a sequence add up two outputs in BF16, each device sending and receiving nearly twice its
// size.
double communication(const CostModel& model, const HardwareProfile& hardware, const ForwardShape& shape) {
  if (hardware.devices == 1) return 0;
  const Config& config = model.config();
  const double d = as_double(config.hidden_size), devices = as_double(hardware.devices);
  const double tokens = as_double(shape.total()) / devices, away = 1 - 1 / devices;
  const double copies = std::min(as_double(config.num_experts_per_tok), devices);
  const double experts = tokens * copies * away * (d + 2 * d) / (hardware.link_gbps * 1e9);
  double layer = experts + 2 * hardware.link_us * 1e-6;
  if (const double n = sharers(hardware, shape.sequences); n > 1) {
    const double replica_tokens = tokens * n;
    layer +=
        2 * (2 * (n - 1) / n * replica_tokens * 2 * d / (hardware.link_gbps * 1e9) + hardware.link_us * 1e-6);
  }
  return as_double(config.num_hidden_layers) * layer;
}

}  // namespace

ForwardEstimate estimate_forward(const CostModel& model, const RowBytes& rows,
                                 const HardwareProfile& hardware, const ForwardShape& shape) {
  const TokenCost cost = model(rows, shape);
  const double total = as_double(shape.total()), devices = as_double(hardware.devices);
  const double n = sharers(hardware, shape.sequences);
  ForwardEstimate out;
  for (std::size_t i = 0; i < kOpClasses; ++i) {
    const ClassCost& c = cost.classes[i];
    const bool routed = static_cast<OpClass>(i) == OpClass::experts;
    const double bytes = total * (c.weight_bytes / (routed ? devices : n) + c.state_bytes / devices);
    const double flops = total * c.flops / devices;
    double gbps = hardware.memory_gbps * hardware.attainable_memory;
    double gflops = 1e3 * hardware.tflops(c.arithmetic) * hardware.attainable_compute;
    if (const auto& measured = hardware.classes[i]) {
      gbps = measured->gbps;
      gflops = measured->gflops;
    }
    out.class_seconds[i] = std::max(bytes / (gbps * 1e9), flops / (gflops * 1e9));
    out.seconds += out.class_seconds[i];
  }
  const double layers = as_double(model.config().num_hidden_layers);
  out.communication_seconds = communication(model, hardware, shape);
  out.other_seconds = layers * (hardware.layer_us + hardware.token_us * total / devices) * 1e-6;
  out.seconds += out.communication_seconds + out.other_seconds;
  out.distinct_experts = model.distinct_experts(shape.total());
  out.tokens_per_expert =
      total * as_double(model.config().num_experts_per_tok) / std::max(1.0, out.distinct_experts);
  out.tokens_per_s = total / out.seconds;
  return out;
}

double prompt_tokens_per_s(const CostModel& model, const RowBytes& rows, const HardwareProfile& hardware,
                           std::int64_t context, std::int64_t chunk) {
  const std::int64_t tokens = std::clamp<std::int64_t>(context, 1, chunk);
  const std::int64_t chunks = (context + tokens - 1) / tokens, samples = std::min<std::int64_t>(chunks, 16);
  double seconds = 0;
  for (std::int64_t i = 0; i < samples; ++i) {
    const std::int64_t at = (2 * i + 1) * chunks / (2 * samples) * tokens;
    seconds += estimate_forward(model, rows, hardware, {at, hardware.devices, tokens, 0}).seconds;
  }
  return as_double(samples * tokens * hardware.devices) / seconds;
}

DeviceMemory device_memory(const CostModel& model, const HardwareProfile& hardware, std::int64_t context,
                           std::int64_t sequences, std::int64_t chunk) {
  const Config& config = model.config();
  const double devices = as_double(hardware.devices),
               n = sharers(hardware, std::max<std::int64_t>(1, sequences));
  DeviceMemory memory;
  const double embedding = 2 * as_double(config.vocab_size * config.hidden_size);
  memory.weights = (model.dense_bytes() + embedding) / n + model.expert_bytes() / devices;
  memory.state = cache_cost(config).bytes_at(context) * as_double(sequences) / devices;
  // Streams, queries and outputs of all heads, the experts' hidden values: BF16, a chunk of one prompt at
  // most.
  const double width =
      as_double(2 * config.hc_mult * config.hidden_size + 3 * config.num_attention_heads * config.head_dim +
                (config.num_experts_per_tok + 1) * 3 * config.moe_intermediate_size);
  const double tokens = std::max(as_double(chunk), as_double(sequences) / devices);
  memory.activations = 2 * width * tokens + 4 * as_double(config.vocab_size) * as_double(sequences) / devices;
  memory.capacity = hardware.memory_gb * 1e9;
  return memory;
}

std::int64_t most_sequences(const CostModel& model, const HardwareProfile& hardware, std::int64_t context,
                            std::int64_t chunk) {
  std::int64_t fits = 0, too_many = std::int64_t{1} << 24;
  while (fits + 1 < too_many) {
    const std::int64_t middle = fits + (too_many - fits) / 2;
    (device_memory(model, hardware, context, middle, chunk).fits() ? fits : too_many) = middle;
  }
  return fits;
}

}  // namespace hadal
