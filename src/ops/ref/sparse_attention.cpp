// Core attention over window and selected rows with a sink (report section 2.3, `sparse_attn` in the
// official kernel.py).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/ref/ref.h"

namespace hadal::ref {

void sparse_attention(const SparseAttentionParams& p, ThreadPool& pool) {
  const double scale = 1 / std::sqrt(static_cast<double>(p.dim));
  pool.parallel_for(p.n_tokens * p.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> probability;
    std::vector<double> sum(static_cast<std::size_t>(p.dim));
    for (std::int64_t th = begin; th < end; ++th) {
      const std::int64_t t = th / p.heads, h = th % p.heads;
      const std::int64_t first = p.begin[static_cast<std::size_t>(t)];
      const auto n_rows = static_cast<std::size_t>(p.begin[static_cast<std::size_t>(t) + 1] - first);
      const float* const* rows = p.rows + first;
      const float* q = p.q + th * p.dim;

      // The maximum runs over the rows alone; the sink enters the denominator only.
      probability.resize(n_rows);
      float maximum = -std::numeric_limits<float>::infinity();
      for (std::size_t j = 0; j < n_rows; ++j) {
        double dot = 0;
        for (std::int64_t i = 0; i < p.dim; ++i) dot += double{q[i]} * double{rows[j][i]};
        probability[j] = static_cast<float>(dot * scale);
        maximum = std::max(maximum, probability[j]);
      }
      double denominator = std::exp(double{p.sink[h]} - double{maximum});
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t j = 0; j < n_rows; ++j) {
        const double e = std::exp(double{probability[j]} - double{maximum});
        denominator += e;
        for (std::int64_t i = 0; i < p.dim; ++i) sum[static_cast<std::size_t>(i)] += e * double{rows[j][i]};
      }
      for (std::int64_t i = 0; i < p.dim; ++i) {
        p.out[th * p.dim + i] = static_cast<float>(sum[static_cast<std::size_t>(i)] / denominator);
      }
    }
  });
}

}  // namespace hadal::ref
