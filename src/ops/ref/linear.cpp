// Linear maps over every stored format, and the embedding lookup (architecture.md sections 2 and 7).
#include <cstring>
#include <vector>

#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal::ref {
namespace {

template <class T>
T load(const std::byte* p, std::int64_t i) {
  T value;
  std::memcpy(&value, p + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace

void dequantise_row(const Linear& w, std::int64_t row, float* out) {
  const std::byte* bytes = w.weight + row * w.row_bytes();
  switch (w.format) {
    case Linear::Format::f32:
      std::memcpy(out, bytes, static_cast<std::size_t>(w.row_bytes()));
      return;
    case Linear::Format::f16:
      for (std::int64_t k = 0; k < w.in; ++k) out[k] = f16_to_f32(load<std::uint16_t>(bytes, k));
      return;
    case Linear::Format::bf16:
      for (std::int64_t k = 0; k < w.in; ++k) out[k] = bf16_to_f32(load<std::uint16_t>(bytes, k));
      return;
    case Linear::Format::fp8: {
      const std::uint8_t* scale = w.scale + (row / 128) * ((w.in + 127) / 128);
      for (std::int64_t k = 0; k < w.in; ++k) {
        out[k] = e4m3_to_f32(load<std::uint8_t>(bytes, k)) * e8m0_to_f32(scale[k / 128]);
      }
      return;
    }
    case Linear::Format::fp4: {
      const std::uint8_t* scale = w.scale + row * (w.in / 32);
      for (std::int64_t k = 0; k < w.in; ++k) {
        const auto pair = load<std::uint8_t>(bytes, k / 2);
        out[k] = e2m1_to_f32(k % 2 == 0 ? pair & 15 : pair >> 4) * e8m0_to_f32(scale[k / 32]);
      }
      return;
    }
  }
}

void embed(const EmbedParams& p, ThreadPool& pool) {
  const std::int64_t d = p.embed->in;
  pool.parallel_for(static_cast<std::int64_t>(p.tokens.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* out = p.out + t * p.copies * d;
      dequantise_row(*p.embed, p.tokens[static_cast<std::size_t>(t)], out);
      for (std::int64_t i = 1; i < p.copies; ++i)
        std::memcpy(out + i * d, out, static_cast<std::size_t>(d) * 4);
    }
  });
}

void linear(const LinearParams& p, ThreadPool& pool) {
  const Linear& w = *p.weight;
  if (p.rounding == InputRounding::int8 && w.quantised()) return linear_int8(p, pool);
  const std::int64_t wide = p.groups * w.in;
  std::vector<float> x(p.x, p.x + p.n_tokens * wide);
  if (p.rounding == InputRounding::e4m3 && w.quantised()) {
    // Rounded to codes and back: products with the scaled weights are the products of the codes times two
    // powers of two, so nothing is lost by multiplying the scales in before the sum.
    quantise({QuantiseParams::Format::e4m3_128, p.n_tokens, wide, wide, x.data()}, pool);
  }
  if (p.rounding == InputRounding::bf16) {
    for (float& value : x) value = bf16_to_f32(f32_to_bf16(value));
  }
  const std::int64_t rows_per_group = w.out / p.groups;
  pool.parallel_for(w.out, 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(static_cast<std::size_t>(w.in));
    for (std::int64_t r = begin; r < end; ++r) {
      dequantise_row(w, r, row.data());
      for (std::int64_t t = 0; t < p.n_tokens; ++t) {
        const float* in = x.data() + t * wide + r / rows_per_group * w.in;
        double sum = 0;
        for (std::int64_t k = 0; k < w.in; ++k)
          sum += double{row[static_cast<std::size_t>(k)]} * double{in[k]};
        p.y[t * w.out + r] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace hadal::ref
