#include "model/moe.h"

#include <algorithm>
#include <numeric>

namespace hadal {
namespace {

struct Routing {
  std::int32_t* indices;  // [T, k]
  float* weights;         // [T, k]
};

Routing route(const Forward& f, const MoeWeights& w, const float* x) {
  const std::int64_t n = f.n_tokens(), n_experts = f.config.n_routed_experts,
                     k = f.config.num_experts_per_tok;
  const Routing routing{f.arena.take<std::int32_t>(n * k), f.arena.take<float>(n * k)};
  float* logits = f.arena.take<float>(n * n_experts);
  f.linear(w.gate, x, n, logits);
  float* scores = f.arena.take<float>(n * n_experts);
  const bool by_table = !w.tid2eid.values.empty();
  GateParams gate{n,
                  n_experts,
                  k,
                  logits,
                  by_table ? nullptr : w.bias.data(),
                  by_table ? w.tid2eid.values.data() : nullptr,
                  f.tokens,
                  static_cast<float>(f.config.routed_scaling_factor),
                  scores,
                  routing.indices,
                  routing.weights};
  if (f.config.v32) {
    gate.sigmoid = true;
    gate.n_group = f.config.v32->n_group;
    gate.topk_group = f.config.v32->topk_group;
  }
  f.backend.run(gate);
  f.watch("ffn.router.scores", scores, {n, n_experts});
  f.watch("ffn.router.indices", routing.indices, {n, k});
  f.watch("ffn.router.weights", routing.weights, {n, k});
  return routing;
}

// The experts that `indices` [T, k] name, to read ahead for `block`: first those of most tokens and, of
// these, those that the router puts first.
void prefetch(const Forward& f, std::int64_t block, std::span<const std::int32_t> indices, bool certain) {
  const Arena::Scope scope(f.arena);
  const std::int64_t n_experts = f.config.n_routed_experts;
  const std::int64_t k = f.config.num_experts_per_tok;
  auto* uses = f.arena.take<std::int64_t>(n_experts);
  auto* order = f.arena.take<std::int32_t>(n_experts);
  std::fill_n(uses, n_experts, 0);
  std::iota(order, order + n_experts, 0);
  for (std::size_t i = 0; i < indices.size(); ++i)
    uses[indices[i]] += 2 * k - static_cast<std::int64_t>(i) % k;
  std::stable_sort(order, order + n_experts,
                   [&](std::int32_t a, std::int32_t b) { return uses[a] > uses[b]; });
  const auto wanted = static_cast<std::size_t>(n_experts - std::count(uses, uses + n_experts, 0));
  f.experts->prefetch(block, {order, wanted}, certain);
}

// What the next block will want, guessed by its own router from this block's input: each block adds little to
// the streams, so the next router sees nearly the same. A wrong guess costs a read, never a result.
void prefetch_next(const Forward& f, std::int64_t block, const float* x) {
  if (block + 1 >= f.config.num_hidden_layers) return;
  const MoeWeights& w = f.weights.layers[static_cast<std::size_t>(block + 1)].ffn;
  if (!w.tid2eid.values.empty()) return;  // known since the forward began
  const Arena::Scope scope(f.arena);
  Forward silent = f;
  silent.tap = nullptr;
  const Routing guess = route(silent, w, x);
  prefetch(f, block + 1,
           {guess.indices, static_cast<std::size_t>(f.n_tokens() * f.config.num_experts_per_tok)}, false);
}

// The experts come in waves of ascending ids, each as soon as it is in memory and while the next ones are
// read; the sums are those of one call with all (ExpertsParams::accumulate).
Status run_from_disk(const Forward& f, std::int64_t block, const Expert& shared, const float* x,
                     ExpertsParams params) {
  f.experts->want(block, {params.indices, static_cast<std::size_t>(params.n_tokens * params.k)});
  prefetch_next(f, block, x);
  for (bool last = false; !last;) {
    HADAL_ASSIGN_OR_RETURN(const ExpertCache::Wave wave, f.experts->next());
    last = wave.last;
    params.experts = wave.experts;
    params.shared = last ? &shared : nullptr;
    f.backend.run(params);
    params.accumulate = true;
  }
  f.experts->finish();
  return {};
}

}  // namespace

Status moe(const Forward& f, std::int64_t block, const MoeWeights& w, const float* x, float* out) {
  const Arena::Scope scope(f.arena);
  const Config& config = f.config;
  const Routing routing = route(f, w, x);
  const ExpertsParams params{f.n_tokens(),
                             config.hidden_size,
                             config.moe_intermediate_size,
                             config.num_experts_per_tok,
                             x,
                             routing.indices,
                             routing.weights,
                             w.experts,
                             &w.shared,
                             static_cast<float>(config.swiglu_limit),
                             f.rounding(),
                             out};
  if (f.experts == nullptr) {
    f.backend.run(params);
  } else {
    HADAL_RETURN_IF_ERROR(run_from_disk(f, block, w.shared, x, params));
  }
  f.watch("ffn.output", out, {f.n_tokens(), config.hidden_size});
  return {};
}

void dense_ffn(const Forward& f, const Expert& w, const float* x, float* out) {
  f.backend.run(ExpertsParams{f.n_tokens(),
                              f.config.hidden_size,
                              w.w1.out,
                              0,
                              x,
                              nullptr,
                              nullptr,
                              {},
                              &w,
                              static_cast<float>(f.config.swiglu_limit),
                              f.rounding(),
                              out});
}

void prefetch_hash_routed(const Forward& f) {
  if (f.experts == nullptr) return;
  const Arena::Scope scope(f.arena);
  const std::int64_t n = f.n_tokens(), k = f.config.num_experts_per_tok;
  auto* indices = f.arena.take<std::int32_t>(n * k);
  for (std::int64_t block = 0; block < f.config.num_hidden_layers; ++block) {
    const auto& table = f.weights.layers[static_cast<std::size_t>(block)].ffn.tid2eid.values;
    if (table.empty()) continue;
    for (std::int64_t t = 0; t < n; ++t)
      std::copy_n(table.data() + f.tokens[static_cast<std::size_t>(t)] * k, k, indices + t * k);
    prefetch(f, block, {indices, static_cast<std::size_t>(n * k)}, true);
  }
}

}  // namespace hadal
