// `int8` numerics: integer codes with one scale per 32 entries, for inputs and for weights
// (docs/performance.md).
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal::ref {
float quantise_int8_block(const float* x, std::int8_t* codes) {
  float amax = 0;
  for (int i = 0; i < 32; ++i) amax = std::max(amax, std::fabs(x[i]));
  if (!(amax > kNothing)) {
    std::fill_n(codes, 32, std::int8_t{0});
    return 0;
  }
  const float inverse = 127 / amax;
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<std::int8_t>(std::nearbyint(x[i] * inverse));
  return amax / 127;
}

float int8_block(const float* v, std::int8_t* codes) {
  float amax = 0;
  for (int i = 0; i < 32; ++i) amax = std::max(amax, std::fabs(v[i]));
  if (!(amax > kNothing)) {
    std::fill_n(codes, 32, std::int8_t{0});
    return 0;
  }
  const auto bits = std::bit_cast<std::uint32_t>(amax / 127);
  const float scale = std::bit_cast<float>((bits + 0xffff) & 0xffff0000U);
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<std::int8_t>(std::nearbyint(v[i] / scale));
  return scale;
}

void int8_row(const Linear& w, std::int64_t row, std::int8_t* codes, float* scales) {
  const std::byte* bytes = w.weight + row * w.row_bytes();
  if (w.format == Linear::Format::fp4) {
    // Twice an E2M1 value is an integer: nothing is rounded.
    const std::uint8_t* e8m0 = w.scale + row * (w.in / 32);
    for (std::int64_t k = 0; k < w.in; ++k) {
      const auto pair = std::to_integer<std::uint8_t>(bytes[k / 2]);
      codes[k] = static_cast<std::int8_t>(2 * e2m1_to_f32(k % 2 == 0 ? pair & 15 : pair >> 4));
    }
    for (std::int64_t b = 0; b < w.in / 32; ++b)
      scales[b] = e8m0[b] < kLeastScale ? 0 : e8m0_to_f32(e8m0[b]) / 2;
    return;
  }
  std::vector<float> values(static_cast<std::size_t>(w.in));
  dequantise_row(w, row, values.data());
  for (std::int64_t b = 0; b < w.in / 32; ++b) scales[b] = int8_block(values.data() + b * 32, codes + b * 32);
}

void linear_int8(const LinearParams& p, ThreadPool& pool) {
  const Linear& w = *p.weight;
  const std::int64_t wide = p.groups * w.in, blocks = w.in / 32;
  std::vector<std::int8_t> x(static_cast<std::size_t>(p.n_tokens * wide));
  std::vector<float> x_scale(x.size() / 32);
  for (std::size_t b = 0; b < x_scale.size(); ++b)
    x_scale[b] = quantise_int8_block(p.x + 32 * b, x.data() + 32 * b);
  const std::int64_t rows_per_group = w.out / p.groups;
  pool.parallel_for(w.out, 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int8_t> row(static_cast<std::size_t>(w.in));
    std::vector<float> row_scale(static_cast<std::size_t>(blocks));
    for (std::int64_t r = begin; r < end; ++r) {
      int8_row(w, r, row.data(), row_scale.data());
      for (std::int64_t t = 0; t < p.n_tokens; ++t) {
        const std::int64_t first = t * wide + r / rows_per_group * w.in;
        double sum = 0;
        for (std::int64_t b = 0; b < blocks; ++b) {
          std::int32_t dot = 0;
          for (std::int64_t k = b * 32; k < (b + 1) * 32; ++k)
            dot += std::int32_t{row[static_cast<std::size_t>(k)]} * x[static_cast<std::size_t>(first + k)];
          sum += double{row_scale[static_cast<std::size_t>(b)]} *
                 x_scale[static_cast<std::size_t>(first / 32 + b)] * dot;
        }
        p.y[t * w.out + r] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace hadal::ref
