// The lightning indexer's scores and selection (report eqs. 13-17, `Indexer` in the official model.py).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/ref/ref.h"

namespace hadal::ref {
namespace {

float score_f32(const float* q, const float* weights, const float* row, std::int64_t heads,
                std::int64_t dim) {
  double score = 0;
  for (std::int64_t h = 0; h < heads; ++h) {
    double dot = 0;
    for (std::int64_t i = 0; i < dim; ++i) dot += double{q[h * dim + i]} * double{row[i]};
    score += std::max(dot, 0.0) * double{weights[h]};
  }
  return static_cast<float>(score);
}

// In the order that IndexScoresParams fixes. `block` is exact: a sum of 32 products of E2M1 numbers is at
// most 32 * 144 quarters of the scales' product.
float score_fp4(const float* q, const float* weights, const float* row, std::int64_t heads,
                std::int64_t dim) {
  float score = 0;
  for (std::int64_t h = 0; h < heads; ++h) {
    float dot = 0;
    for (std::int64_t b = 0; b < dim; b += 32) {
      float block = 0;
      for (std::int64_t i = b; i < b + 32; ++i) block += q[h * dim + i] * row[i];
      dot += block;
    }
    score = std::fma(weights[h], dot > 0 ? dot : 0.0F, score);
  }
  return score;
}

}  // namespace

void index_scores(const IndexScoresParams& p, ThreadPool& pool) {
  const auto score = p.rows.shape.format == RowFormat::fp4_tiles ? score_fp4 : score_f32;
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(static_cast<std::size_t>(p.dim));
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t b = 0; b < p.visible[static_cast<std::size_t>(t)]; ++b) {
        p.rows.load(b, row.data());
        p.scores[t * p.stride + b] =
            score(p.q + t * p.heads * p.dim, p.weights + t * p.heads, row.data(), p.heads, p.dim);
      }
    }
  });
}

void top_k(const float* scores, std::int64_t n, std::int64_t k, std::int32_t* indices) {
  const auto comparable = [&](std::int32_t row) {
    return scores[row] == scores[row] ? scores[row] : -std::numeric_limits<float>::infinity();
  };
  const std::int64_t kept = std::min(k, n);
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::nth_element(order.begin(), order.begin() + kept, order.end(), [&](std::int32_t a, std::int32_t b) {
    const float score_a = comparable(a), score_b = comparable(b);
    return score_a > score_b || (score_a == score_b && a < b);
  });
  std::sort(order.begin(), order.begin() + kept);
  std::copy(order.begin(), order.begin() + kept, indices);
  std::fill(indices + kept, indices + k, -1);
}

void index_select(const IndexSelectParams& p, ThreadPool& pool) {
  std::vector<float> scores;
  for (std::int64_t t = 0; t < p.n_tokens; ++t) {
    const auto visible = p.visible.subspan(static_cast<std::size_t>(t), 1);
    scores.resize(static_cast<std::size_t>(visible[0]));
    index_scores({1, p.heads, p.dim, p.q + t * p.heads * p.dim, p.weights + t * p.heads, p.rows, visible,
                  visible[0], scores.data()},
                 pool);
    top_k(scores.data(), visible[0], p.k, p.indices + t * p.k);
  }
}

// KL(p || r) = sum_b p_b (log p_b - log r_b) with r = softmax(scores): its gradient is r - p.
void index_loss(const IndexLossParams& p, ThreadPool& pool) {
  const CausalAttentionShape& s = p.shape;
  pool.parallel_for(s.sequences * s.length, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> rows;
    for (std::int64_t token = begin; token < end; ++token) {
      rows.clear();
      if (p.selected == nullptr) {
        for (std::int64_t b = 0; b < s.visible(token % s.length); ++b) rows.push_back(b);
      } else {
        for (std::int64_t i = 0; i < s.k && p.selected[token * s.k + i] >= 0; ++i)
          rows.push_back(p.selected[token * s.k + i]);
      }
      p.loss[token] = 0;
      float* d_scores = p.d_scores != nullptr ? p.d_scores + token * s.n_rows : nullptr;
      if (d_scores != nullptr) std::fill_n(d_scores, s.n_rows, 0.0F);
      const float* mass = p.mass + token * s.n_rows;
      const float* scores = p.scores + token * s.n_rows;
      double all = 0, maximum = -std::numeric_limits<double>::infinity(), total = 0;
      for (const std::int64_t b : rows) {
        all += double{mass[b]};
        maximum = std::max(maximum, double{scores[b]});
      }
      // Where the sink and the window take all that float32 can tell, there is nothing to learn from.
      if (!(all > 0)) continue;
      for (const std::int64_t b : rows) total += std::exp(double{scores[b]} - maximum);
      double loss = 0;
      for (const std::int64_t b : rows) {
        const double target = double{mass[b]} / all, log_r = double{scores[b]} - maximum - std::log(total);
        if (target > 0) loss += target * (std::log(target) - log_r);
        if (d_scores != nullptr)
          d_scores[b] = static_cast<float>(double{p.scale} * (std::exp(log_r) - target));
      }
      p.loss[token] = static_cast<float>(loss);
    }
  });
}

void causal_index_scores(const CausalIndexScoresParams& p, ThreadPool& pool) {
  const CausalAttentionShape& s = p.shape;
  pool.parallel_for(s.sequences * s.length, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      float* scores = p.scores + token * s.n_rows;
      std::fill_n(scores, s.n_rows, 0.0F);
      for (std::int64_t r = 0; r < s.visible(token % s.length); ++r) {
        scores[r] = score_f32(p.q + token * s.heads * s.dim, p.weights + token * s.heads,
                              p.rows + (token / s.length * s.n_rows + r) * s.dim, s.heads, s.dim);
      }
    }
  });
}

void causal_index_scores_backward(const CausalIndexScoresBackwardParams& p, ThreadPool& pool) {
  const CausalAttentionShape& s = p.shape;
  pool.parallel_for(s.sequences, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> d_rows(static_cast<std::size_t>(s.n_rows * s.dim));
    std::vector<double> d_q(static_cast<std::size_t>(s.dim));
    for (std::int64_t b = begin; b < end; ++b) {
      std::fill(d_rows.begin(), d_rows.end(), 0.0);
      for (std::int64_t token = b * s.length; token < (b + 1) * s.length; ++token) {
        for (std::int64_t h = 0; h < s.heads; ++h) {
          const std::int64_t th = token * s.heads + h;
          const float* q = p.q + th * s.dim;
          double d_weight = 0;
          std::fill(d_q.begin(), d_q.end(), 0.0);
          for (std::int64_t r = 0; r < s.visible(token % s.length); ++r) {
            const float* row = p.rows + (b * s.n_rows + r) * s.dim;
            const double d_score = p.d_scores[token * s.n_rows + r];
            double dot = 0;
            for (std::int64_t i = 0; i < s.dim; ++i) dot += double{q[i]} * double{row[i]};
            if (dot <= 0) continue;  // relu
            d_weight += d_score * dot;
            const double d_dot = d_score * double{p.weights[th]};
            for (std::int64_t i = 0; i < s.dim; ++i) {
              d_q[static_cast<std::size_t>(i)] += d_dot * double{row[i]};
              d_rows[static_cast<std::size_t>(r * s.dim + i)] += d_dot * double{q[i]};
            }
          }
          p.d_weights[th] = static_cast<float>(d_weight);
          std::transform(d_q.begin(), d_q.end(), p.d_q + th * s.dim,
                         [](double x) { return static_cast<float>(x); });
        }
      }
      std::transform(d_rows.begin(), d_rows.end(), p.d_rows + b * s.n_rows * s.dim,
                     [](double x) { return static_cast<float>(x); });
    }
  });
}

}  // namespace hadal::ref
