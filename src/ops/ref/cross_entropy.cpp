// The cross-entropy of the next token (docs/training.md).
#include <algorithm>
#include <cmath>

#include "ops/ref/ref.h"

namespace hadal::ref {

// loss = log sum_v exp(z_v) - z_target; d loss / d z = softmax(z) - [v = target].
void cross_entropy(const CrossEntropyParams& p, ThreadPool& pool) {
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      float* z = p.logits + r * p.vocab;
      const double maximum = *std::max_element(z, z + p.vocab);
      double total = 0;
      for (std::int64_t v = 0; v < p.vocab; ++v) total += std::exp(double{z[v]} - maximum);
      const std::int32_t target = p.targets[r];
      p.loss[r] = static_cast<float>(maximum + std::log(total) - double{z[target]});
      if (p.scales == nullptr) continue;
      const double scale = p.scales[r];
      for (std::int64_t v = 0; v < p.vocab; ++v) {
        const double share = std::exp(double{z[v]} - maximum) / total;
        z[v] = static_cast<float>(scale * (share - (v == target ? 1 : 0)));
      }
    }
  });
}

}  // namespace hadal::ref
