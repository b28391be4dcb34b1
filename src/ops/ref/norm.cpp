// RMSNorm (architecture.md section 2), and the LayerNorm of V3.2's indexer.
#include <cmath>

#include "ops/ref/ref.h"

namespace hadal::ref {

void rms_norm(const RmsNormParams& p, ThreadPool& pool) {
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const float* x = p.x + r * p.dim;
      float* out = p.out + r * p.dim;
      double sum = 0;
      for (std::int64_t i = 0; i < p.dim; ++i) sum += double{x[i]} * double{x[i]};
      const float inverse = 1.0F / std::sqrt(static_cast<float>(sum / static_cast<double>(p.dim)) + p.eps);
      for (std::int64_t i = 0; i < p.dim; ++i) {
        const float normalised = x[i] * inverse;
        out[i] = p.weight != nullptr ? p.weight[i] * normalised : normalised;
      }
    }
  });
}

void layer_norm(const LayerNormParams& p, ThreadPool& pool) {
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const float* x = p.x + r * p.dim;
      float* out = p.out + r * p.dim;
      double sum = 0, squares = 0;
      for (std::int64_t i = 0; i < p.dim; ++i) sum += double{x[i]};
      const double mean = sum / static_cast<double>(p.dim);
      for (std::int64_t i = 0; i < p.dim; ++i) squares += (double{x[i]} - mean) * (double{x[i]} - mean);
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(p.dim) + double{p.eps});
      for (std::int64_t i = 0; i < p.dim; ++i)
        out[i] = static_cast<float>((double{x[i]} - mean) * inverse) * p.weight[i] + p.bias[i];
    }
  });
}

}  // namespace hadal::ref
