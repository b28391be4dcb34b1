// Routed and shared experts (architecture.md section 5; `Expert`, `MoE` in the official model.py).
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/ref/ref.h"

namespace hadal::ref {

void experts(const ExpertsParams& p, ThreadPool& pool) {
  const std::int64_t n = p.n_tokens;
  if (!p.accumulate) std::fill(p.out, p.out + n * p.dim, 0.0F);

  // One expert over the tokens that chose it: out[token] += expert(x[token], weight).
  const auto add = [&](const Expert& expert, const std::vector<std::int64_t>& tokens,
                       const std::vector<float>& weights) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    std::vector<float> x(static_cast<std::size_t>(count * p.dim)), y(x.size());
    std::vector<float> gate(static_cast<std::size_t>(count * p.inter)), up(gate.size());
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(p.x + tokens[static_cast<std::size_t>(i)] * p.dim, p.dim, x.begin() + i * p.dim);
    }
    linear({count, x.data(), &expert.w1, 1, p.rounding, gate.data()}, pool);
    linear({count, x.data(), &expert.w3, 1, p.rounding, up.data()}, pool);
    for (std::int64_t at = 0; at < count * p.inter; ++at) {
      const auto i = static_cast<std::size_t>(at);
      // The gate is clamped from above only; the routing weight comes before w2 and so before its quantiser.
      const float g = std::min(gate[i], p.swiglu_limit);
      const float u = std::clamp(up[i], -p.swiglu_limit, p.swiglu_limit);
      const float silu = g / (1.0F + std::exp(-g));
      gate[i] = weights[static_cast<std::size_t>(at / p.inter)] * (silu * u);
    }
    linear({count, gate.data(), &expert.w2, 1, p.rounding, y.data()}, pool);
    for (std::int64_t i = 0; i < count; ++i) {
      float* out = p.out + tokens[static_cast<std::size_t>(i)] * p.dim;
      for (std::int64_t c = 0; c < p.dim; ++c) out[c] += y[static_cast<std::size_t>(i * p.dim + c)];
    }
  };

  std::vector<std::int64_t> tokens;
  std::vector<float> weights;
  for (std::size_t e = 0; e < p.experts.size(); ++e) {
    if (!p.experts[e].has_weights()) continue;
    tokens.clear();
    weights.clear();
    for (std::int64_t t = 0; t < n; ++t) {
      for (std::int64_t i = 0; i < p.k; ++i) {
        if (p.indices[t * p.k + i] != static_cast<std::int32_t>(e)) continue;
        tokens.push_back(t);
        weights.push_back(p.weights[t * p.k + i]);
      }
    }
    if (!tokens.empty()) add(p.experts[e], tokens, weights);
  }
  if (p.shared == nullptr) return;
  tokens.resize(static_cast<std::size_t>(n));
  for (std::int64_t t = 0; t < n; ++t) tokens[static_cast<std::size_t>(t)] = t;
  add(*p.shared, tokens, std::vector<float>(static_cast<std::size_t>(n), 1.0F));
}

void swiglu(const SwigluParams& p, ThreadPool& pool) {
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin * p.inter; at < end * p.inter; ++at) {
      const double g = std::min(p.gate[at], p.limit);
      const double u = std::clamp(p.up[at], -p.limit, p.limit);
      const double weight = p.weights != nullptr ? p.weights[at / p.inter] : 1.0F;
      p.out[at] = static_cast<float>(weight * (g / (1 + std::exp(-g)) * u));
    }
  });
}

// silu(g) = g sigma(g), silu'(g) = sigma(g) (1 + g (1 - sigma(g))). A clamp passes the gradient inside its
// range, ends included, and stops it outside.
void swiglu_backward(const SwigluBackwardParams& p, ThreadPool& pool) {
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const double weight = p.weights != nullptr ? p.weights[r] : 1.0F;
      double d_weight = 0;
      for (std::int64_t at = r * p.inter; at < (r + 1) * p.inter; ++at) {
        const bool gate_inside = p.gate[at] <= p.limit, up_inside = std::abs(p.up[at]) <= p.limit;
        const double g = std::min(p.gate[at], p.limit);
        const double u = std::clamp(p.up[at], -p.limit, p.limit);
        const double sigma = 1 / (1 + std::exp(-g)), silu = g * sigma, d_out = p.d_out[at];
        d_weight += d_out * silu * u;
        p.d_gate[at] =
            gate_inside ? static_cast<float>(d_out * weight * u * sigma * (1 + g * (1 - sigma))) : 0.0F;
        p.d_up[at] = up_inside ? static_cast<float>(d_out * weight * silu) : 0.0F;
      }
      if (p.d_weights != nullptr) p.d_weights[r] = static_cast<float>(d_weight);
    }
  });
}

}  // namespace hadal::ref
