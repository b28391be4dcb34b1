// Core attention over window and selected rows with a sink (report section 2.3, `sparse_attn` in the
// official kernel.py).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/attention_rows.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal::ref {

void sparse_attention(const SparseAttentionParams& p, ThreadPool& pool) {
  const auto dim = static_cast<std::size_t>(p.row.dim);
  const auto values = static_cast<std::size_t>(p.values());
  const double scale = p.scale > 0 ? double{p.scale} : 1 / std::sqrt(static_cast<double>(dim));
  pool.parallel_for(p.n_tokens * p.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    const auto rounded = [&](float x) { return p.bf16 ? bf16_to_f32(f32_to_bf16(x)) : x; };
    std::vector<float> row(dim);
    std::vector<double> score, sum(values);
    for (std::int64_t th = begin; th < end; ++th) {
      const std::int64_t t = th / p.heads, h = th % p.heads;
      const AttentionRows rows(p, t);
      const auto n_rows = static_cast<std::size_t>(rows.count());
      const float* q = p.q + th * p.row.dim;
      const auto load = [&](std::size_t j) {
        const AttentionRows::Row from = rows[static_cast<std::int64_t>(j)];
        load_row({from.format, p.row.dim, p.row.rope_dim}, from.data, 0, row.data());
        for (float& x : row) x = rounded(x);
      };

      // The maximum runs over the rows alone; the sink enters the denominator only.
      score.resize(n_rows);
      double maximum = -std::numeric_limits<double>::infinity();
      for (std::size_t j = 0; j < n_rows; ++j) {
        load(j);
        double dot = 0;
        for (std::size_t i = 0; i < dim; ++i) dot += double{rounded(q[i])} * double{row[i]};
        score[j] = dot * scale;
        maximum = std::max(maximum, score[j]);
      }
      double denominator = p.sink != nullptr ? std::exp(double{p.sink[h]} - maximum) : 0;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t j = 0; j < n_rows; ++j) {
        load(j);
        double e = std::exp(score[j] - maximum);
        if (p.bf16) e = double{rounded(static_cast<float>(e))};
        denominator += e;
        for (std::size_t i = 0; i < values; ++i) sum[i] += e * double{row[i]};
      }
      float* out = p.out + th * p.values();
      for (std::size_t i = 0; i < values; ++i) out[i] = static_cast<float>(sum[i] / denominator);
    }
  });
}

}  // namespace hadal::ref
