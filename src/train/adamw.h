// AdamW (Loshchilov, Hutter 2019) for what is not a matrix of Muon's: with bias correction and decoupled
// decay,
//
//   m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
//   w <- w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
#pragma once

#include <cstdint>
#include <span>

#include "base/thread_pool.h"

namespace hadal {

struct AdamwOptions {
  float beta1 = 0.9F;
  float beta2 = 0.95F;
  float epsilon = 1e-20F;
  float weight_decay = 0.1F;
};

// One parameter of n elements.
struct AdamwVector {
  float* weight = nullptr;
  float* first_moment = nullptr;   // m
  float* second_moment = nullptr;  // v
  const float* gradient = nullptr;
  std::int64_t n = 0;
  bool decay = true;
};

// Step t = 1, 2, ... of all parameters. `gradient_scale` multiplies g (clipping).
void adamw_step(std::span<const AdamwVector> vectors, const AdamwOptions& options, std::int64_t t,
                float learning_rate, float gradient_scale, ThreadPool& pool);

}  // namespace hadal
