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

}  // namespace hadal::ref
