// Sixteen rows of a matrix times up to 64 tokens, by one block: the heart of every linear map.
//
// The order of every sum is one, whatever the number of tokens: `in` falls into blocks of 128, each block is
// summed by eight matrix instructions (one after another for each part of the input), its sum is scaled, and
// the blocks are added up in ascending order. Which warp computed a block does not matter.
//
// Inside a block the order of k is the one in which a thread finds its weights (pack_input lays the input out
// to match). BF16 holds every FP8 and FP4 weight exactly, FP4 with its scale.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/cuda/weights.cuh"

namespace hadal::cuda {

constexpr int kDepth = 128;    // of a block
constexpr int kTileRows16 = 16;
constexpr int kRowWarps = 8;   // that share the blocks of a row
constexpr int kRowThreads = kRowWarps * kWarp;
constexpr int kColumnStride = 20;  // floats between the columns of 16 sums: no two banks meet

enum class Kind : int { fp8, fp4, bf16 };

// The input of linears as BF16 numbers, `parts` planes of [rows, stride].
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
__device__ inline std::uint32_t multiply_bf16(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// Four E4M3 codes: bytes 0 and 2, and bytes 1 and 3, as BF16. Their bits fit into those of a BF16 number with
// another bias, subnormal ones too; 2^120 puts that right.
__device__ inline void from_e4m3(std::uint32_t w, std::uint32_t& even, std::uint32_t& odd) {
  constexpr std::uint32_t kSigns = 0x80008000, kRest = 0x07f007f0, kBias = 0x7b807b80;
  even = multiply_bf16(((w << 8) & kSigns) | ((w << 4) & kRest), kBias);
  odd = multiply_bf16((w & kSigns) | ((w >> 4) & kRest), kBias);
}
// Eight E2M1 codes as pairs (i, i + 4), likewise.
__device__ inline void from_e2m1(std::uint32_t w, std::uint32_t (&pairs)[4]) {
  constexpr std::uint32_t kSigns = 0x80008000, kRest = 0x01c001c0, kBias = 0x7e807e80;  // 2^126
  pairs[0] = multiply_bf16(((w << 12) & kSigns) | ((w << 6) & kRest), kBias);
  pairs[1] = multiply_bf16(((w << 8) & kSigns) | ((w << 2) & kRest), kBias);
  pairs[2] = multiply_bf16(((w << 4) & kSigns) | ((w >> 2) & kRest), kBias);
  pairs[3] = multiply_bf16((w & kSigns) | ((w >> 6) & kRest), kBias);
}
// An E8M0 scale as BF16, in both halves.
__device__ inline std::uint32_t bf16_scale(std::uint32_t byte) {
  const std::uint32_t bits = byte == 0 ? 0x40 : byte << 7;
  return bits | bits << 16;
}

// What a thread reads of a block of its two rows g and g + 8.
template <Kind kind>
struct RawBlock {
  static constexpr int kLoads = kind == Kind::fp8 ? 2 : kind == Kind::fp4 ? 1 : 4;  // per row
  uint4 codes[2][kLoads];
  std::uint32_t scale[2];  // the E8M0 byte

  __device__ void load(const DeviceLinear& w, std::int64_t row_a, std::int64_t row_b, int block, int q) {
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = half == 0 ? row_a : row_b;
      if constexpr (kind == Kind::fp8) {
        const std::uint8_t* from = w.weight + row * w.in + block * kDepth + q * 16;
#pragma unroll
        for (int c = 0; c < 2; ++c) codes[half][c] = load_stream(from + c * 64);
        scale[half] = w.scale[row / 128 * (w.in / 128) + block];
      } else if constexpr (kind == Kind::fp4) {
        codes[half][0] = load_stream(w.weight + row * (w.in / 2) + block * (kDepth / 2) + q * 16);
        scale[half] = w.scale[row * (w.in / 32) + block * 4 + q];
      } else {
        const std::uint8_t* from = w.weight + (row * w.in + block * kDepth + q * 8) * 2;
#pragma unroll
        for (int c = 0; c < 4; ++c) codes[half][c] = load_stream(from + c * 64);
        scale[half] = 127;
      }
    }
  }
  // By which the sums of the block are multiplied.
  __device__ float factor(int half) const { return kind == Kind::fp8 ? e8m0(static_cast<std::uint8_t>(scale[half])) : 1.0F; }
};

__device__ inline std::uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// sums[n] += rows g, g + 8 of the block times columns 8n .. 8n + 7. x[n]: the column's input at the thread's
// first k of the block, or null for none.
template <Kind kind, int kParts, int kTiles>
__device__ inline void multiply_block(const RawBlock<kind>& raw, const std::uint16_t* const (&x)[kTiles],
                                      std::int64_t plane, float (&sums)[kTiles][4]) {
  constexpr int kChunks = RawBlock<kind>::kLoads;
  constexpr int kSteps = 8 / kChunks;                  // matrix instructions of a chunk
  constexpr int kVectors = kSteps / 2;                 // 16-byte loads of the input
  constexpr int kChunkDepth = kDepth / kChunks;        // k of a chunk, of all four threads
  std::uint32_t factor[2] = {};
  if constexpr (kind == Kind::fp4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) factor[half] = bf16_scale(raw.scale[half]);
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    std::uint32_t a[kSteps][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4& codes = raw.codes[half][c];
      if constexpr (kind == Kind::fp8) {
#pragma unroll
        for (int s = 0; s < 4; ++s) from_e4m3(word(codes, s), a[s][half], a[s][2 + half]);
      } else if constexpr (kind == Kind::fp4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          std::uint32_t pairs[4];
          from_e2m1(word(codes, i), pairs);
#pragma unroll
          for (int pair = 0; pair < 4; ++pair)
            a[2 * i + pair / 2][pair % 2 * 2 + half] = multiply_bf16(pairs[pair], factor[half]);
        }
      } else {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          a[s][half] = word(codes, 2 * s);
          a[s][2 + half] = word(codes, 2 * s + 1);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        uint4 b[kVectors];
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          b[v] = x[n] == nullptr
                     ? uint4{0, 0, 0, 0}
                     : *reinterpret_cast<const uint4*>(x[n] + part * plane + c * kChunkDepth + v * 8);
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
          mma(sums[n], a[s][0], a[s][1], a[s][2], a[s][3], word(b[s / 2], s % 2 * 2), word(b[s / 2], s % 2 * 2 + 1));
      }
    }
  }
}

// Entries of a block's input before those of thread q.
template <Kind kind>
__device__ constexpr int first_of(int q) {
  return q * (kind == Kind::fp8 ? 16 : kind == Kind::fp4 ? 32 : 8);
}

constexpr std::size_t row_shared_bytes(int tiles, int matrices) {
  return std::size_t{2} * kRowWarps * static_cast<std::size_t>(matrices * 8 * tiles * kColumnStride) * sizeof(float);
}

// The sums of `kMatrices` matrices of one shape: rows [row, row + 16) below `end`, columns token(0) ..
// token(8 * kTiles - 1), rows of the input, negative for none. Thread t of the block ends up with those of
// outputs t, t + 256, ...: output o is row o % 16 of column o / 16.
template <Kind kind, int kParts, int kTiles, int kMatrices, class Token>
__device__ inline void multiply_rows(const DeviceLinear (&w)[kMatrices], std::int64_t row, std::int64_t end,
                                     const PackedInput& input, Token&& token,
                                     float (&out)[kMatrices][(kTiles + 1) / 2]) {
  extern __shared__ float shared[];
  constexpr int kColumns = 8 * kTiles, kOutputs = (kTiles + 1) / 2;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp, warp = tid / kWarp;
  const int g = lane / 4, q = lane % 4;
  const std::int64_t row_a = min(row + g, end - 1), row_b = min(row + g + 8, end - 1);
  const auto blocks = static_cast<int>(w[0].in / kDepth);

  const std::uint16_t* x[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const std::int64_t t = token(8 * n + g);
    x[n] = t < 0 ? nullptr : input.x + t * input.stride + first_of<kind>(q);
  }
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) out[m][o] = 0;
  }

  RawBlock<kind> next[kMatrices];
  if (warp < blocks) {
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) next[m].load(w[m], row_a, row_b, warp, q);
  }
  int buffer = 0;
  for (int first = 0; first < blocks; first += kRowWarps, buffer ^= 1) {
    float* sums_of = shared + buffer * kRowWarps * kMatrices * kColumns * kColumnStride;
    const int block = first + warp;
    if (block < blocks) {
      RawBlock<kind> raw[kMatrices];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) raw[m] = next[m];
      if (block + kRowWarps < blocks) {
#pragma unroll
        for (int m = 0; m < kMatrices; ++m) next[m].load(w[m], row_a, row_b, block + kRowWarps, q);
      }
      const std::uint16_t* at[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) at[n] = x[n] == nullptr ? nullptr : x[n] + block * kDepth;
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        float sums[kTiles][4] = {};
        multiply_block<kind, kParts, kTiles>(raw[m], at, input.plane, sums);
        const float factor_a = raw[m].factor(0), factor_b = raw[m].factor(1);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          float* to = sums_of + ((warp * kMatrices + m) * kColumns + 8 * n + 2 * q) * kColumnStride + g;
          to[0] = sums[n][0] * factor_a;
          to[kColumnStride] = sums[n][1] * factor_a;
          to[8] = sums[n][2] * factor_b;
          to[kColumnStride + 8] = sums[n][3] * factor_b;
        }
      }
    }
    __syncthreads();
    const int computed = min(kRowWarps, blocks - first);
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const int at = tid + o * kRowThreads;
        if (at < kColumns * 16) {
          const float* from = sums_of + (m * kColumns + at / 16) * kColumnStride + at % 16;
          for (int b = 0; b < computed; ++b) out[m][o] += from[b * kMatrices * kColumns * kColumnStride];
        }
      }
    }
  }
}

}  // namespace hadal::cuda
