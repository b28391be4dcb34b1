// The quantisers of the cache and of the inputs of quantised linears, and the Hadamard rotation in front of
// the indexer's (architecture.md sections 4 and 7; act_quant, fp4_act_quant in the official kernel.py).
#include <algorithm>
#include <cmath>

#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal::ref {
namespace {

float absolute_maximum(const float* x, std::int64_t n) {
  float amax = 0;
  for (std::int64_t i = 0; i < n; ++i) amax = std::max(amax, std::fabs(x[i]));
  return amax;
}

}  // namespace

std::uint8_t quantise_e4m3_block(float* x, std::int64_t n, std::uint8_t* codes) {
  const std::uint8_t scale_byte =
      e8m0_scale(std::max(absolute_maximum(x, n), 1e-4F), static_cast<float>(1.0 / 448));
  const float scale = e8m0_to_f32(scale_byte);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint8_t code = f32_to_e4m3(x[i] / scale);
    if (codes != nullptr) codes[i] = code;
    x[i] = e4m3_to_f32(code) * scale;
  }
  return scale_byte;
}

std::uint8_t quantise_e2m1_block(float* x, std::int64_t n, std::uint8_t* codes) {
  const std::uint8_t scale_byte =
      e8m0_scale(std::max(absolute_maximum(x, n), 6 * 0x1p-126F), static_cast<float>(1.0 / 6));
  const float scale = e8m0_to_f32(scale_byte);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint8_t code = f32_to_e2m1(x[i] / scale);
    if (codes != nullptr) codes[i] = code;
    x[i] = e2m1_to_f32(code) * scale;
  }
  return scale_byte;
}

void quantise(const QuantiseParams& p, ThreadPool& pool) {
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      float* x = p.x + r * p.dim;
      switch (p.format) {
        case QuantiseParams::Format::e4m3_64:
          for (std::int64_t i = 0; i < p.quantised_dim; i += 64) quantise_e4m3_block(x + i, 64);
          break;
        case QuantiseParams::Format::e4m3_128:
          for (std::int64_t i = 0; i < p.quantised_dim; i += 128) quantise_e4m3_block(x + i, 128);
          break;
        case QuantiseParams::Format::e2m1_32:
          for (std::int64_t i = 0; i < p.quantised_dim; i += 32) quantise_e2m1_block(x + i, 32);
          break;
      }
    }
  });
}

void hadamard(const HadamardParams& p, ThreadPool& pool) {
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(p.dim)));
  pool.parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      float* x = p.x + r * p.dim;
      // H_2n = [[H_n, H_n], [H_n, -H_n]]: log2(dim) rounds of butterflies.
      for (std::int64_t half = 1; half < p.dim; half *= 2) {
        for (std::int64_t i = 0; i < p.dim; i += 2 * half) {
          for (std::int64_t j = i; j < i + half; ++j) {
            const float a = x[j], b = x[j + half];
            x[j] = a + b;
            x[j + half] = a - b;
          }
        }
      }
      for (std::int64_t i = 0; i < p.dim; ++i) x[i] *= scale;
    }
  });
}

}  // namespace hadal::ref
