// Rotary position embedding, interleaved: pairs (2i, 2i+1) of the last rope_dim entries (section 3).
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
        float* x = p.x + (t * p.heads + h + 1) * p.dim - p.rope_dim;
        for (std::int64_t i = 0; i < half; ++i) {
          const float c = cos[i], s = p.inverse ? -sin[i] : sin[i];
          const float even = x[2 * i], odd = x[2 * i + 1];
          x[2 * i] = even * c - odd * s;
          x[2 * i + 1] = even * s + odd * c;
        }
      }
    }
  });
}

}  // namespace hadal::ref
