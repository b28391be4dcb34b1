#include "train/adamw.h"

#include <cmath>

namespace hadal {

void adamw_step(std::span<const AdamwVector> vectors, const AdamwOptions& options, std::int64_t t,
                float learning_rate, float gradient_scale, ThreadPool& pool) {
  const float b1 = options.beta1, b2 = options.beta2;
  // lr / (1 - b1^t) in front, so that an element costs one root and one division; eps is then added to
  // sqrt(v / (1 - b2^t)) as it should be.
  const double correction1 = 1 - std::pow(static_cast<double>(b1), static_cast<double>(t));
  const double correction2 = 1 - std::pow(static_cast<double>(b2), static_cast<double>(t));
  const auto rate = static_cast<float>(static_cast<double>(learning_rate) / correction1);
  const auto inverse2 = static_cast<float>(1 / correction2);
  for (const AdamwVector& p : vectors) {
    const float keep = p.decay ? 1 - learning_rate * options.weight_decay : 1;
    pool.parallel_for(p.n, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const float g = p.gradient[i] * gradient_scale;
        const float m = b1 * p.first_moment[i] + (1 - b1) * g;
        const float v = b2 * p.second_moment[i] + (1 - b2) * (g * g);
        p.first_moment[i] = m;
        p.second_moment[i] = v;
        p.weight[i] = p.weight[i] * keep - rate * m / (std::sqrt(v * inverse2) + options.epsilon);
      }
    });
  }
}

}  // namespace hadal
