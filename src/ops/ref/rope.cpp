// Rotary position embedding (section 3).
#include <cmath>

#include "ops/ref/ref.h"

namespace hadal::ref {

void angles(const AnglesParams& p) {
  float *cos = p.cos, *sin = p.sin;
  for (const std::int64_t position : p.positions) {
    for (const float frequency : p.frequencies) {
      const double angle = static_cast<float>(position) * frequency;
      *cos++ = static_cast<float>(std::cos(angle));
      *sin++ = static_cast<float>(std::sin(angle));
    }
  }
}

void rope(const RopeParams& p, ThreadPool& pool) {
  const std::int64_t half = p.rope_dim / 2;
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* cos = p.cos + t * half;
      const float* sin = p.sin + t * half;
      for (std::int64_t h = 0; h < p.heads; ++h) {
        float* head = p.x + (t * p.heads + h) * p.dim;
        const bool adjacent = p.pairs == RopeParams::Pairs::last_adjacent;
        for (std::int64_t i = 0; i < half; ++i) {
          float& a = head[adjacent ? p.dim - p.rope_dim + 2 * i : i];
          float& b = head[adjacent ? p.dim - p.rope_dim + 2 * i + 1 : i + half];
          const float c = cos[i], s = p.inverse ? -sin[i] : sin[i];
          const float first = a, second = b;
          a = first * c - second * s;
          b = first * s + second * c;
        }
      }
    }
  });
}

}  // namespace hadal::ref
