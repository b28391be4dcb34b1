#include "plan/plan.h"

#include <algorithm>

namespace hadal {

ModelPlan plan_model(const std::string& name, const CostModel& model, std::int64_t context) {
  const Config& config = model.config();
  ModelPlan plan;
  plan.name = name;
  plan.parameters = count_parameters(config);
  plan.weights_bytes = static_cast<double>(expected_inventory(config, StorageFormat::published).bytes);
  plan.kv_bytes = cache_cost(config).bytes_at(context);
  const bool quantised = is_quantised(config.dense_format) || is_quantised(config.expert_format);
  const StateLayout layout(config, quantised ? StateFormat::compact : StateFormat::f32);
  plan.hadal_kv_bytes = static_cast<double>(layout.bytes(context));
  plan.cost = model(RowBytes::published(config), {context - 1, 1, 1, 1});
  return plan;
}

CurvePoint curve_point(const CostModel& model, std::int64_t context) {
  const TokenCost cost = model(RowBytes::published(model.config()), {context - 1, 1, 1, 1});
  return {context, cost.flops(), cost.fp8_equivalent_flops(), cache_cost(model.config()).bytes_at(context)};
}

MachinePlan plan_machine(const CostModel& model, const HardwareProfile& hardware,
                         const PlanRequest& request) {
  const RowBytes rows = RowBytes::published(model.config());
  MachinePlan plan;
  plan.most_sequences = most_sequences(model, hardware, request.context, request.chunk);
  plan.batch = request.batch > 0 ? request.batch
                                 : std::clamp<std::int64_t>(plan.most_sequences, 1,
                                                            PlanRequest::kMostPerDevice * hardware.devices);
  plan.memory = device_memory(model, hardware, request.context, plan.batch, request.chunk);
  plan.decode = estimate_forward(model, rows, hardware, {request.context - 1, plan.batch, 1, 1});
  const std::int64_t tokens = std::min(request.chunk, request.context);
  plan.prefill =
      estimate_forward(model, rows, hardware, {request.context - tokens, hardware.devices, tokens, 0});
  plan.prompt_tokens_per_s = prompt_tokens_per_s(model, rows, hardware, request.context, request.chunk);
  plan.prices = own_prices(model.config(), hardware, request.economics, request.context,
                           plan.prompt_tokens_per_s, plan.decode.tokens_per_s);
  return plan;
}

}  // namespace hadal
