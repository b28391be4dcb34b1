// RMSNorm (architecture.md section 2), and the LayerNorm of V3.2's indexer.
#include <cmath>
#include <vector>

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

// With r = (mean x^2 + eps)^-1/2 and g = weight * d_out: out = weight * r * x, and dr/dx_i = -r^3 x_i / dim,
// so
//   d_x = r * g - r^3 / dim * (g . x) * x.
void rms_norm_backward(const RmsNormBackwardParams& p, ThreadPool& pool) {
  std::vector<double> inverse(static_cast<std::size_t>(p.rows));
  // The sums of d_weight first: d_x may take the place of d_out.
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      double sum = 0;
      for (std::int64_t i = 0; i < p.dim; ++i) sum += double{p.x[r * p.dim + i]} * double{p.x[r * p.dim + i]};
      inverse[static_cast<std::size_t>(r)] = 1 / std::sqrt(sum / static_cast<double>(p.dim) + double{p.eps});
    }
  });
  if (p.d_weight != nullptr) {
    pool.parallel_for(p.dim, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        double sum = 0;
        for (std::int64_t r = 0; r < p.rows; ++r) {
          const std::int64_t at = r * p.dim + i;
          sum += double{p.d_out[at]} * double{p.x[at]} * inverse[static_cast<std::size_t>(r)];
        }
        p.d_weight[i] += static_cast<float>(sum);
      }
    });
  }
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const float* x = p.x + r * p.dim;
      const float* d_out = p.d_out + r * p.dim;
      float* d_x = p.d_x + r * p.dim;
      const double inv = inverse[static_cast<std::size_t>(r)];
      const auto weighted = [&](std::int64_t i) {
        return double{d_out[i]} * (p.weight != nullptr ? double{p.weight[i]} : 1.0);
      };
      double dot = 0;
      for (std::int64_t i = 0; i < p.dim; ++i) dot += weighted(i) * double{x[i]};
      const double factor = inv * inv * inv * dot / static_cast<double>(p.dim);
      for (std::int64_t i = 0; i < p.dim; ++i)
        d_x[i] = static_cast<float>(inv * weighted(i) - factor * double{x[i]});
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
