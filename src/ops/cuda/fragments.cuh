// Quantised weights as operands of the matrix units.
//
// BF16 holds every FP8 and FP4 weight exactly, FP4 with its scale. The matrix units do not care in which
// order k comes, if it is the same for both operands; so a thread takes the k whose weights lie together, and
// the input is laid out to match (pack_kernel in linear.cu).
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/cuda/weights.cuh"

namespace hadal::cuda {

constexpr int kDepth = 128;  // of a block

enum class Kind : int { fp8, fp4, bf16 };

inline Kind kind_of(Linear::Format format) {
  return format == Linear::Format::fp8 ? Kind::fp8 : format == Linear::Format::fp4 ? Kind::fp4 : Kind::bf16;
}

// The input of linears as BF16 numbers, planes of [rows, stride]: one part each, or three that add up to it.
struct PackedInput {
  const std::uint16_t* x;
  std::int64_t plane;   // entries between parts
  std::int64_t stride;  // entries between rows
};

__device__ inline uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ inline std::uint32_t load_byte(const std::uint8_t* p) {
  std::uint32_t v;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
// Brings bytes that will be read soon near this multiprocessor; all threads of the block.
__device__ inline void touch(const void* from, std::int64_t bytes) {
  const auto* at = static_cast<const std::uint8_t*>(from);
  for (std::int64_t i = std::int64_t{threadIdx.x} * 128; i < bytes; i += std::int64_t{blockDim.x} * 128) {
    asm volatile("{ .reg .u32 ignored; ld.global.u32 ignored, [%0]; }" ::"l"(at + i) : "memory");
  }
}
__device__ inline std::uint32_t multiply_bf16(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ inline std::uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Four E4M3 codes: bytes 0 and 2, and bytes 1 and 3, as BF16. Their bits fit into those of a BF16 number with
// another bias, subnormal ones too; 2^120 puts that right.
__device__ inline void from_e4m3(std::uint32_t w, std::uint32_t& even, std::uint32_t& odd) {
  constexpr std::uint32_t kSigns = 0x80008000, kRest = 0x07f007f0, kBias = 0x7b807b80;
  even = multiply_bf16(((w << 8) & kSigns) | ((w << 4) & kRest), kBias);
  odd = multiply_bf16((w & kSigns) | ((w >> 4) & kRest), kBias);
}
// Eight E2M1 codes as pairs (i, i + 4), times `factor`; 2^126 puts their bias right.
__device__ inline void from_e2m1(std::uint32_t w, std::uint32_t factor, std::uint32_t (&pairs)[4]) {
  constexpr std::uint32_t kSigns = 0x80008000, kRest = 0x01c001c0;
  pairs[0] = multiply_bf16(((w << 12) & kSigns) | ((w << 6) & kRest), factor);
  pairs[1] = multiply_bf16(((w << 8) & kSigns) | ((w << 2) & kRest), factor);
  pairs[2] = multiply_bf16(((w << 4) & kSigns) | ((w >> 2) & kRest), factor);
  pairs[3] = multiply_bf16((w & kSigns) | ((w >> 6) & kRest), factor);
}
constexpr std::uint32_t kE2m1Bias = 0x7e807e80;  // 2^126
constexpr std::uint32_t kMostFolded = 128;  // the largest E8M0 byte whose scale times 2^126 is a BF16 number

// An E8M0 scale as BF16, in both halves.
__device__ inline std::uint32_t bf16_scale(std::uint32_t byte) {
  const std::uint32_t bits = byte == 0 ? 0x40 : byte << 7;
  return bits | bits << 16;
}

// A matrix and its scales.
struct WeightPointers {
  const std::uint8_t* weight;
  const std::uint8_t* scale;
};

// Where a thread (g = lane / 4, q = lane % 4) finds what it reads of its two rows g and g + 8.
template <Kind kind>
struct RowPointers {
  const std::uint8_t* weight[2];
  const std::uint8_t* scale[2];

  RowPointers() = default;
  __device__ RowPointers(const WeightPointers& w, std::int64_t in, int row_a, int row_b, int q) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = half == 0 ? row_a : row_b;
      if constexpr (kind == Kind::fp8) {
        weight[half] = w.weight + row * in + q * 16;
        scale[half] = w.scale + row / 128 * (in / 128);
      } else if constexpr (kind == Kind::fp4) {
        weight[half] = w.weight + row * (in / 2) + q * 16;
        scale[half] = w.scale + row * (in / 32) + q;
      } else {
        weight[half] = w.weight + row * in * 2 + q * 16;
        scale[half] = nullptr;
      }
    }
  }
};

// What it reads of a block.
template <Kind kind>
struct RawBlock {
  static constexpr int kLoads = kind == Kind::fp8 ? 2 : kind == Kind::fp4 ? 1 : 4;  // per row
  static constexpr int kBytes = kind == Kind::fp8 ? kDepth : kind == Kind::fp4 ? kDepth / 2 : 2 * kDepth;
  static constexpr int kScales = kind == Kind::fp8 ? 1 : 4;
  uint4 codes[2][kLoads];
  std::uint32_t scale[2];  // the E8M0 byte

  __device__ void load(const RowPointers<kind>& rows, int block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < kLoads; ++c)
        codes[half][c] = load_stream(rows.weight[half] + block * kBytes + c * 64);
      if constexpr (kind != Kind::bf16) scale[half] = load_byte(rows.scale[half] + block * kScales);
    }
  }
  // By which the sums of the block are multiplied.
  __device__ float factor(int half) const {
    return kind == Kind::fp8 ? e8m0(static_cast<std::uint8_t>(scale[half])) : 1.0F;
  }
  // Whether the scales of the warp's FP4 weights can be multiplied in together with the bias.
  __device__ bool folds() const {
    if constexpr (kind == Kind::fp4) return !__any_sync(kAll, max(scale[0], scale[1]) > kMostFolded);
    return true;
  }
  // The operands of four of the block's eight matrix instructions, the first or the last.
  template <int kFirst>
  __device__ void fragments(bool folded, std::uint32_t (&a)[4][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (kind == Kind::fp8) {
#pragma unroll
        for (int s = 0; s < 4; ++s) from_e4m3(word(codes[half][kFirst / 4], s), a[s][half], a[s][2 + half]);
      } else if constexpr (kind == Kind::fp4) {
        const std::uint32_t bits = (scale[half] + 126) << 7;
        const std::uint32_t factor = folded ? bits | bits << 16 : kE2m1Bias;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::uint32_t pairs[4];
          from_e2m1(word(codes[half][0], kFirst / 2 + i), factor, pairs);
          a[2 * i][half] = pairs[0];
          a[2 * i][2 + half] = pairs[1];
          a[2 * i + 1][half] = pairs[2];
          a[2 * i + 1][2 + half] = pairs[3];
        }
      } else {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          a[s][half] = word(codes[half][(kFirst + s) / 2], s % 2 * 2);
          a[s][2 + half] = word(codes[half][(kFirst + s) / 2], s % 2 * 2 + 1);
        }
      }
    }
    if constexpr (kind == Kind::fp4) {
      if (folded) return;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[s][i] = multiply_bf16(a[s][i], bf16_scale(scale[i % 2]));
      }
    }
  }
};

// Where thread q's input of a block begins, and its v-th eight entries behind that: those of instructions 2v
// and 2v + 1.
template <Kind kind>
__device__ constexpr int input_first(int q) {
  return q * (kind == Kind::fp8 ? 16 : kind == Kind::fp4 ? 32 : 8);
}
template <Kind kind>
__device__ constexpr int input_place(int v) {
  return kind == Kind::fp8 ? v / 2 * 64 + v % 2 * 8 : kind == Kind::fp4 ? v * 8 : v * 32;
}

}  // namespace hadal::cuda
