// The router (architecture.md section 5, `Gate` in the official model.py).
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/ref/ref.h"

namespace hadal::ref {
namespace {

// log(1 + e^x), with the same cut as torch's softplus: beyond 20 it is x to float32's last bit.
float softplus(float x) {
  return x > 20 ? x : std::log1p(std::exp(x));
}

// Of the groups that may not be chosen from, minus infinity for every expert. choice: [E] affinities + bias.
void keep_best_groups(const GateParams& p, std::vector<float>& choice) {
  const std::int64_t size = p.n_experts / p.n_group;
  std::vector<float> best(static_cast<std::size_t>(p.n_group));
  std::vector<std::int64_t> order(best.size());
  std::iota(order.begin(), order.end(), 0);
  for (std::int64_t g = 0; g < p.n_group; ++g) {
    std::vector<float> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::partial_sort(members.begin(), members.begin() + 2, members.end(), std::greater<>());
    best[static_cast<std::size_t>(g)] = members[0] + members[1];
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return best[static_cast<std::size_t>(a)] > best[static_cast<std::size_t>(b)];
  });
  for (std::int64_t i = p.topk_group; i < p.n_group; ++i) {
    const auto from = choice.begin() + order[static_cast<std::size_t>(i)] * size;
    std::fill(from, from + size, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace

void gate(const GateParams& p, ThreadPool& pool) {
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(p.n_experts));
    std::vector<float> choice(order.size());
    for (std::int64_t t = begin; t < end; ++t) {
      float* scores = p.scores + t * p.n_experts;
      for (std::int64_t e = 0; e < p.n_experts; ++e) {
        const float logit = p.logits[t * p.n_experts + e];
        scores[e] = p.sigmoid ? 1.0F / (1.0F + std::exp(-logit)) : std::sqrt(softplus(logit));
      }

      std::int32_t* indices = p.indices + t * p.k;
      if (p.table != nullptr) {
        const std::int64_t token = p.tokens[static_cast<std::size_t>(t)];
        std::copy_n(p.table + token * p.k, p.k, indices);
      } else {
        // The bias chooses; it never weighs.
        for (std::int64_t e = 0; e < p.n_experts; ++e)
          choice[static_cast<std::size_t>(e)] = scores[e] + p.bias[e];
        if (p.n_group > 1) keep_best_groups(p, choice);
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + p.k, order.end(),
                          [&](std::int32_t a, std::int32_t b) {
                            const float score_a = choice[static_cast<std::size_t>(a)],
                                        score_b = choice[static_cast<std::size_t>(b)];
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

// Of the chosen experts, weight_i = f s_i / S with S their sum: d_s_i = f / S (d_w_i - sum_j d_w_j s_j / S).
// Of all experts, share_i = s_i / A with A the sum of all:       d_s_i = 1 / A (d_share_i - sum_j d_share_j
// s_j / A). And s = sqrt(softplus(z)): ds/dz = sigmoid(z) / (2 s), which tends to 0 with s.
void gate_backward(const GateBackwardParams& p, ThreadPool& pool) {
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> d_scores(static_cast<std::size_t>(p.n_experts));
    for (std::int64_t t = begin; t < end; ++t) {
      const float* scores = p.scores + t * p.n_experts;
      const std::int32_t* indices = p.indices + t * p.k;
      const float* d_weights = p.d_weights + t * p.k;
      std::fill(d_scores.begin(), d_scores.end(), 0.0);

      double chosen = 0, dot = 0;
      for (std::int64_t i = 0; i < p.k; ++i) chosen += double{scores[indices[i]]};
      for (std::int64_t i = 0; i < p.k; ++i)
        dot += double{d_weights[i]} * double{scores[indices[i]]} / chosen;
      for (std::int64_t i = 0; i < p.k; ++i) {
        d_scores[static_cast<std::size_t>(indices[i])] +=
            double{p.routed_scaling_factor} / chosen * (double{d_weights[i]} - dot);
      }
      if (p.d_shares != nullptr) {
        const float* d_shares = p.d_shares + t / p.length * p.n_experts;
        double all = 0, mean = 0;
        for (std::int64_t e = 0; e < p.n_experts; ++e) all += double{scores[e]};
        for (std::int64_t e = 0; e < p.n_experts; ++e) mean += double{d_shares[e]} * double{scores[e]} / all;
        for (std::int64_t e = 0; e < p.n_experts; ++e)
          d_scores[static_cast<std::size_t>(e)] += (double{d_shares[e]} - mean) / all;
      }
      for (std::int64_t e = 0; e < p.n_experts; ++e) {
        const double s = scores[e], z = p.logits[t * p.n_experts + e];
        const double slope = s > 0 ? 1 / (1 + std::exp(-z)) / (2 * s) : 0;
        p.d_logits[t * p.n_experts + e] = static_cast<float>(d_scores[static_cast<std::size_t>(e)] * slope);
      }
    }
  });
}

}  // namespace hadal::ref
