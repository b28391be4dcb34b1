// The lightning indexer's scores and selection (report eqs. 13-17, `Indexer` in the official model.py).
#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/ref/ref.h"

namespace hadal::ref {

void index_scores(const IndexScoresParams& p, ThreadPool& pool) {
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(static_cast<std::size_t>(p.dim));
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t b = 0; b < p.visible[static_cast<std::size_t>(t)]; ++b) {
        p.rows.load(b, row.data());
        double score = 0;
        for (std::int64_t h = 0; h < p.heads; ++h) {
          const float* q = p.q + (t * p.heads + h) * p.dim;
          double dot = 0;
          for (std::int64_t i = 0; i < p.dim; ++i)
            dot += double{q[i]} * double{row[static_cast<std::size_t>(i)]};
          score += std::max(dot, 0.0) * double{p.weights[t * p.heads + h]};
        }
        p.scores[t * p.stride + b] = static_cast<float>(score);
      }
    }
  });
}

void top_k(const TopKParams& p, ThreadPool& pool) {
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int32_t> order;
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t visible = p.visible[static_cast<std::size_t>(t)];
      const std::int64_t kept = std::min(p.k, visible);
      const float* scores = p.scores + t * p.stride;
      order.resize(static_cast<std::size_t>(visible));
      std::iota(order.begin(), order.end(), 0);
      if (kept < visible) {
        std::nth_element(order.begin(), order.begin() + kept, order.end(),
                         [&](std::int32_t a, std::int32_t b) {
                           return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
                         });
        std::sort(order.begin(), order.begin() + kept);
      }
      std::int32_t* out = p.indices + t * p.k;
      std::copy(order.begin(), order.begin() + kept, out);
      std::fill(out + kept, out + p.k, -1);
    }
  });
}

}  // namespace hadal::ref
