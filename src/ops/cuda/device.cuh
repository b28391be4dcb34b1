// What the kernels share: the number formats, reductions of one order, matrix fragments.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/linear.h"
#include "ops/row_format.h"

namespace hadal::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffff;

// --- number formats (tensor/codec.h) -----------------------------------------------------------------------

__device__ inline float e8m0(std::uint8_t b) {
  return b == 255 ? __uint_as_float(0x7fc00000U)
         : b == 0 ? __uint_as_float(0x00400000U)
                  : __uint_as_float(std::uint32_t{b} << 23);
}

__device__ inline float e4m3(std::uint8_t code) {
  const std::uint32_t exponent = (code >> 3) & 15, mantissa = code & 7,
                      sign = std::uint32_t{code & 128U} << 24;
  if ((code & 127) == 127) return __uint_as_float(0x7fc00000U);
  const float magnitude = exponent == 0 ? static_cast<float>(mantissa) * 0.001953125F
                                        : __uint_as_float((exponent + 120) << 23 | mantissa << 20);
  return __uint_as_float(__float_as_uint(magnitude) | sign);
}

__device__ inline float e2m1(unsigned code) {
  const unsigned m = code & 7;
  const float magnitude =
      m < 2 ? 0.5F * static_cast<float>(m) : __uint_as_float((126 + (m >> 1)) << 23 | (m & 1) << 22);
  return (code & 8) != 0 ? -magnitude : magnitude;
}

__device__ inline std::uint8_t to_e4m3(float x) {
  const std::uint32_t bits = __float_as_uint(x), sign = (bits >> 24) & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<std::uint8_t>(sign | 0x7f);
  const float a = __uint_as_float(magnitude);
  if (a >= 448) return static_cast<std::uint8_t>(sign | 0x7e);
  if (a < 0.015625F)  // subnormal: the addition rounds to multiples of 2^-9
    return static_cast<std::uint8_t>(sign | (__float_as_uint(a + 16384.0F) & 0xff));
  const std::uint32_t rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
  const std::uint32_t code = (rounded >> 20) - (120U << 3);
  return static_cast<std::uint8_t>(sign | (code > 0x7e ? 0x7e : code));
}

__device__ inline std::uint8_t to_e2m1(float x) {
  const auto sign = static_cast<std::uint8_t>((__float_as_uint(x) >> 28) & 8);
  const float a = fabsf(x);
  const int code = !(a > .25F)  ? 0
                   : a < .75F   ? 1
                   : a <= 1.25F ? 2
                   : a < 1.75F  ? 3
                   : a <= 2.5F  ? 4
                   : a < 3.5F   ? 5
                   : a <= 5.F   ? 6
                                : 7;
  return static_cast<std::uint8_t>(sign | code);
}

__device__ inline std::uint8_t e8m0_scale(float amax, float max_inverse) {
  const std::uint32_t bits = __float_as_uint(amax * max_inverse);
  return static_cast<std::uint8_t>(((bits >> 23) & 0xff) + ((bits & 0x7fffff) != 0 ? 1 : 0));
}
__device__ inline std::uint8_t e4m3_scale(float amax) {
  return e8m0_scale(fmaxf(amax, 1e-4F), static_cast<float>(1.0 / 448));
}
__device__ inline std::uint8_t e2m1_scale(float amax) {
  return e8m0_scale(fmaxf(amax, 7.052966104933725e-38F), static_cast<float>(1.0 / 6));  // 6 * 2^-126
}

__device__ inline float round_bf16(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}
__device__ inline std::uint16_t bf16_bits(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ inline float from_bf16(std::uint16_t bits) {
  return __uint_as_float(std::uint32_t{bits} << 16);
}
// Two BF16 numbers in a register, the first low.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
  return std::uint32_t{bf16_bits(low)} | std::uint32_t{bf16_bits(high)} << 16;
}

// x as the sum of three BF16 numbers: to float32's last bit.
struct Parts {
  float high, middle, low;
};
__device__ inline Parts split(float x) {
  const float high = round_bf16(x), rest = x - high, middle = round_bf16(rest);
  return {high, middle, rest - middle};
}

// --- reductions: the order depends on the number of threads of the kernel alone ----------------------------

__device__ inline double warp_sum(double x) {
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(kAll, x, lane);
  return x;
}
__device__ inline float warp_sum(float x) {
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(kAll, x, lane);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, lane));
  return x;
}
// Over a block of at most 1024 threads; `scratch` has 32 entries. Every thread gets the sum.
__device__ inline double block_sum(double x, double* scratch) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < warps; ++w) sum += scratch[w];
  return sum;
}

// --- matrix fragments --------------------------------------------------------------------------------------

// d[16][8] += a[16][16] b[16][8]: a thread (g = lane / 4, q = lane % 4) has of a the pairs of columns 2q and
// 2q + 8 of rows g and g + 8 (a0: row g, a1: row g + 8, a2 and a3 eight columns on), of b the pairs of rows
// 2q and 2q + 8 of column g, of d columns 2q and 2q + 1 of rows g (d0, d1) and g + 8 (d2, d3).
__device__ inline void mma(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                           std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// --- rows of a sequence's state (ops/row_format.h) ---------------------------------------------------------

struct DeviceRowShape {
  RowFormat format;
  int dim, codes, rope_at;
  std::int64_t bytes;
};

// One entry of a row that is no FP4.
__device__ inline float row_entry(const DeviceRowShape& shape, const std::byte* row, int i) {
  if (shape.format == RowFormat::f32) return reinterpret_cast<const float*>(row)[i];
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(row);
  if (i < shape.codes) return e4m3(bytes[i]) * e8m0(bytes[shape.codes + i / 64]);
  return from_bf16(reinterpret_cast<const std::uint16_t*>(bytes + shape.rope_at)[i - shape.codes]);
}

}  // namespace hadal::cuda
