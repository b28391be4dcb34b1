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

namespace {

// The rows that token t of sequence b attends to, and their probabilities for one head. The index of a row is
// that of a token of the sequence, or T + that of a compressed row.
class CausalRows {
 public:
  CausalRows(const CausalAttentionShape& shape, const std::int32_t* selected, std::int64_t b,
             std::int64_t t) {
    for (std::int64_t s = std::max<std::int64_t>(0, t - shape.window_rows + 1); s <= t; ++s) ids.push_back(s);
    if (selected == nullptr) {
      for (std::int64_t r = 0; r < shape.visible(t); ++r) ids.push_back(shape.length + r);
      return;
    }
    const std::int32_t* own = selected + (b * shape.length + t) * shape.k;
    for (std::int64_t i = 0; i < shape.k && own[i] >= 0; ++i) ids.push_back(shape.length + own[i]);
  }

  // p: [ids.size()]. Returns the probability of the sink.
  double probabilities(const CausalAttentionShape& shape, const float* q, const float* kv, const float* rows,
                       double sink, std::vector<double>& p) const {
    const double scale = 1 / std::sqrt(static_cast<double>(shape.dim));
    double maximum = -std::numeric_limits<double>::infinity();
    p.resize(ids.size());
    for (std::size_t j = 0; j < ids.size(); ++j) {
      const float* row = row_of(shape, kv, rows, j);
      double dot = 0;
      for (std::int64_t i = 0; i < shape.dim; ++i) dot += double{q[i]} * double{row[i]};
      p[j] = dot * scale;
      maximum = std::max(maximum, p[j]);
    }
    double denominator = std::exp(sink - maximum);
    for (double& x : p) denominator += x = std::exp(x - maximum);
    for (double& x : p) x /= denominator;
    return std::exp(sink - maximum) / denominator;
  }
  // kv and rows: of the sequence.
  const float* row_of(const CausalAttentionShape& shape, const float* kv, const float* rows,
                      std::size_t j) const {
    return ids[j] < shape.length ? kv + ids[j] * shape.dim : rows + (ids[j] - shape.length) * shape.dim;
  }

  std::vector<std::int64_t> ids;
};

}  // namespace

void causal_attention(const CausalAttentionParams& p, ThreadPool& pool) {
  const CausalAttentionShape& s = p.shape;
  pool.parallel_for(s.sequences * s.length, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> probability, sum(static_cast<std::size_t>(s.dim));
    std::vector<double> mass(static_cast<std::size_t>(s.n_rows));
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int64_t b = token / s.length;
      const CausalRows seen(s, p.selected, b, token % s.length);
      const float* kv = p.kv + b * s.length * s.dim;
      const float* rows = p.rows + b * s.n_rows * s.dim;
      std::fill(mass.begin(), mass.end(), 0.0);
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const std::int64_t th = token * s.heads + h;
        seen.probabilities(s, p.q + th * s.dim, kv, rows, p.sink[h], probability);
        std::fill(sum.begin(), sum.end(), 0.0);
        for (std::size_t j = 0; j < seen.ids.size(); ++j) {
          const float* row = seen.row_of(s, kv, rows, j);
          for (std::int64_t i = 0; i < s.dim; ++i)
            sum[static_cast<std::size_t>(i)] += probability[j] * double{row[i]};
          if (seen.ids[j] >= s.length)
            mass[static_cast<std::size_t>(seen.ids[j] - s.length)] += probability[j];
        }
        if (p.out == nullptr) continue;
        std::transform(sum.begin(), sum.end(), p.out + th * s.dim,
                       [](double x) { return static_cast<float>(x); });
      }
      if (p.mass == nullptr) continue;
      std::transform(mass.begin(), mass.end(), p.mass + token * s.n_rows,
                     [](double x) { return static_cast<float>(x); });
    }
  });
}

// With a_j = q . r_j / sqrt(c), p = softmax with the sink as one more score s that has no row, o = sum_j p_j
// r_j:
//   d_p_j = d_o . r_j,  and sum_j p_j d_p_j = d_o . o (the sink's d_p is 0)
//   d_a_j = p_j (d_p_j - d_o . o),  d_s = -p_s (d_o . o)
//   d_q = sum_j d_a_j r_j / sqrt(c),  d_r_j += d_a_j q / sqrt(c) + p_j d_o   (keys and values are one)
// A row belongs to one sequence, so the threads divide the sequences.
void causal_attention_backward(const CausalAttentionBackwardParams& p, ThreadPool& pool) {
  const CausalAttentionShape& s = p.shape;
  const double scale = 1 / std::sqrt(static_cast<double>(s.dim));
  const auto dim = static_cast<std::size_t>(s.dim);
  std::vector<double> d_sinks(static_cast<std::size_t>(s.sequences * s.heads));
  pool.parallel_for(s.sequences, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> probability, d_q(dim);
    std::vector<double> d_rows(static_cast<std::size_t>(s.length + s.n_rows) * dim);
    for (std::int64_t b = begin; b < end; ++b) {
      const float* kv = p.kv + b * s.length * s.dim;
      const float* rows = p.rows + b * s.n_rows * s.dim;
      std::fill(d_rows.begin(), d_rows.end(), 0.0);
      for (std::int64_t t = 0; t < s.length; ++t) {
        const CausalRows seen(s, p.selected, b, t);
        for (std::int64_t h = 0; h < s.heads; ++h) {
          const std::int64_t at = ((b * s.length + t) * s.heads + h) * s.dim;
          const float* q = p.q + at;
          const float* d_out = p.d_out + at;
          const double sink = seen.probabilities(s, q, kv, rows, p.sink[h], probability);
          double along = 0;  // d_o . o
          for (std::int64_t i = 0; i < s.dim; ++i) along += double{d_out[i]} * double{p.out[at + i]};
          d_sinks[static_cast<std::size_t>(b * s.heads + h)] -= sink * along;
          std::fill(d_q.begin(), d_q.end(), 0.0);
          for (std::size_t j = 0; j < seen.ids.size(); ++j) {
            const float* row = seen.row_of(s, kv, rows, j);
            double d_p = 0;
            for (std::size_t i = 0; i < dim; ++i) d_p += double{d_out[i]} * double{row[i]};
            const double d_score = probability[j] * (d_p - along) * scale;
            double* d_row = d_rows.data() + seen.ids[j] * s.dim;
            for (std::size_t i = 0; i < dim; ++i) {
              d_q[i] += d_score * double{row[i]};
              d_row[i] += d_score * double{q[i]} + probability[j] * double{d_out[i]};
            }
          }
          std::transform(d_q.begin(), d_q.end(), p.d_q + at, [](double x) { return static_cast<float>(x); });
        }
      }
      for (std::int64_t i = 0; i < s.length * s.dim; ++i)
        p.d_kv[b * s.length * s.dim + i] = static_cast<float>(d_rows[static_cast<std::size_t>(i)]);
      for (std::int64_t i = 0; i < s.n_rows * s.dim; ++i) {
        p.d_rows[b * s.n_rows * s.dim + i] =
            static_cast<float>(d_rows[static_cast<std::size_t>(s.length * s.dim + i)]);
      }
    }
  });
  for (std::int64_t h = 0; h < s.heads; ++h) {
    double sum = 0;
    for (std::int64_t b = 0; b < s.sequences; ++b) sum += d_sinks[static_cast<std::size_t>(b * s.heads + h)];
    p.d_sink[h] += static_cast<float>(sum);
  }
}

}  // namespace hadal::ref
