// The router (architecture.md section 5, `Gate` in the official model.py).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/ref/ref.h"

namespace hadal::ref {
namespace {

// log(1 + e^x), with the same cut as torch's softplus: beyond 20 it is x to float32's last bit.
float softplus(float x) {
  return x > 20 ? x : std::log1p(std::exp(x));
}

}  // namespace

void gate(const GateParams& p, ThreadPool& pool) {
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(p.n_experts));
    for (std::int64_t t = begin; t < end; ++t) {
      float* scores = p.scores + t * p.n_experts;
      for (std::int64_t e = 0; e < p.n_experts; ++e)
        scores[e] = std::sqrt(softplus(p.logits[t * p.n_experts + e]));

      std::int32_t* indices = p.indices + t * p.k;
      if (p.table != nullptr) {
        const std::int64_t token = p.tokens[static_cast<std::size_t>(t)];
        std::copy_n(p.table + token * p.k, p.k, indices);
      } else {
        // The bias chooses; it never weighs.
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + p.k, order.end(),
                          [&](std::int32_t a, std::int32_t b) {
                            const float score_a = scores[a] + p.bias[a], score_b = scores[b] + p.bias[b];
                            return score_a > score_b || (score_a == score_b && a < b);
                          });
        std::copy_n(order.begin(), p.k, indices);
      }

      float sum = 0;
      for (std::int64_t i = 0; i < p.k; ++i) sum += scores[indices[i]];
      for (std::int64_t i = 0; i < p.k; ++i) {
        p.weights[t * p.k + i] = scores[indices[i]] / sum * p.routed_scaling_factor;
      }
    }
  });
}

}  // namespace hadal::ref
