#include "model/moe.h"

namespace hadal {

void moe(const Forward& f, const MoeWeights& w, const float* x, float* out) {
  const Arena::Scope scope(f.arena);
  const Config& config = f.config;
  const std::int64_t n = f.n_tokens(), n_experts = config.n_routed_experts, k = config.num_experts_per_tok;

  float* logits = f.arena.take<float>(n * n_experts);
  f.linear(w.gate, x, n, logits);
  float* scores = f.arena.take<float>(n * n_experts);
  auto* indices = f.arena.take<std::int32_t>(n * k);
  float* weights = f.arena.take<float>(n * k);
  const bool by_table = !w.tid2eid.values.empty();
  f.backend.run(GateParams{n, n_experts, k, logits, by_table ? nullptr : w.bias.data(),
                           by_table ? w.tid2eid.values.data() : nullptr, f.tokens,
                           static_cast<float>(config.routed_scaling_factor), scores, indices, weights});
  f.watch("ffn.router.scores", scores, {n, n_experts});
  f.watch("ffn.router.indices", indices, {n, k});
  f.watch("ffn.router.weights", weights, {n, k});

  f.backend.run(ExpertsParams{n, config.hidden_size, config.moe_intermediate_size, k, x, indices, weights,
                              w.experts, &w.shared, static_cast<float>(config.swiglu_limit), f.rounding(),
                              out});
  f.watch("ffn.output", out, {n, config.hidden_size});
}

}  // namespace hadal
