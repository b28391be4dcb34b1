// Sixteen rows of a matrix times up to 64 tokens at a time, by blocks that keep reading weights while they sum:
// the linear maps of few tokens.
//
// The order of every sum is one, whatever the number of tokens and here as in mma_tiles.cuh: `in` falls into
// blocks of 128; each is summed by eight matrix instructions for each part of the input, the smallest part first;
// its sum is scaled, and the blocks are added up in ascending order. Which warp computed a block does not matter.
#pragma once

#include "ops/cuda/fragments.cuh"

namespace hadal::cuda {

constexpr int kRowWarps = 8;  // that share the blocks of a row
constexpr int kRowThreads = kRowWarps * kWarp;
constexpr int kColumnStride = 20;  // floats between the columns of 16 sums: no two banks meet

// Steps of eight blocks whose weights are on their way while another is summed: as many as registers hold.
constexpr int prefetched(Kind kind, int parts, int tiles, int matrices) {
  if (tiles > 2 || ((tiles == 2 || matrices == 2) && kind != Kind::fp4)) return 1;
  if (tiles == 2 || matrices == 2 || parts == 3) return 2;
  return 3;
}
// Blocks that a multiprocessor should hold of such a kernel.
constexpr int row_blocks(int tiles) {
  return tiles > 2 ? 1 : 2;
}
constexpr std::size_t row_shared_bytes(int tiles, int matrices) {
  return std::size_t{2} * kRowWarps * static_cast<std::size_t>(matrices * 8 * tiles * kColumnStride) * sizeof(float);
}

// sums[n] += rows g, g + 8 of the block times columns 8n .. 8n + 7. x[n]: the column's input at the thread's
// first k of the block, or null for none.
template <Kind kind, int kParts, int kTiles>
__device__ inline void multiply_block(const RawBlock<kind>& raw, const std::uint16_t* const (&x)[kTiles],
                                      std::int64_t plane, float (&sums)[kTiles][4]) {
  std::uint32_t a[8][4];
  raw.fragments(a);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int part = kParts - 1; part >= 0; --part) {
      uint4 b[4];
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        b[v] = x[n] == nullptr ? uint4{0, 0, 0, 0}
                               : *reinterpret_cast<const uint4*>(x[n] + part * plane + input_place<kind>(v));
      }
#pragma unroll
      for (int s = 0; s < 8; ++s)
        mma(sums[n], a[s][0], a[s][1], a[s][2], a[s][3], word(b[s / 2], s % 2 * 2), word(b[s / 2], s % 2 * 2 + 1));
    }
  }
}

// What a Problem says of one piece of work: 16 rows (below `end`) of matrices of one shape, and some tokens.
template <int kMatrices>
struct RowItem {
  DeviceLinear w[kMatrices];
  std::int64_t row, end;
  std::int64_t tokens;  // whatever the Problem needs to find its columns
};

// Works through items first, first + step, ... below `count` of a Problem, which has
//   kMatrices;  RowItem item(i);  const uint16_t* input(item, column), null for none;  plane();
//   store(item, column, row, sums of each matrix)
template <Kind kind, int kParts, int kTiles, class Problem>
__device__ inline void multiply_rows(const Problem& problem, std::int64_t first, std::int64_t step, std::int64_t count) {
  extern __shared__ float shared[];
  constexpr int kMatrices = Problem::kMatrices, kColumns = 8 * kTiles, kOutputs = (kTiles + 1) / 2;
  constexpr int kAhead = prefetched(kind, kParts, kTiles, kMatrices);
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp, warp = tid / kWarp;
  const int g = lane / 4, q = lane % 4;
  if (first >= count) return;
  RowItem<kMatrices> item = problem.item(first);
  const auto blocks = static_cast<int>(item.w[0].in / kDepth);
  const int rounds = (blocks + kRowWarps - 1) / kRowWarps;
  const std::int64_t steps = (count - first + step - 1) / step * rounds;

  RawBlock<kind> raw[kAhead][kMatrices];
  // The item that is being read, `kAhead` steps before it is summed.
  RowItem<kMatrices> reading = item;
  std::int64_t read_work = first;
  int read_round = 0;
  const auto read = [&](RawBlock<kind>(&to)[kMatrices]) {
    if (read_work >= count) return;
    const int block = read_round * kRowWarps + warp;
    if (block < blocks) {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        to[m].load(reading.w[m], min(reading.row + g, reading.end - 1), min(reading.row + g + 8, reading.end - 1), block,
                   q);
      }
    }
    if (++read_round == rounds) {
      read_round = 0;
      read_work += step;
      if (read_work < count) reading = problem.item(read_work);
    }
  };
#pragma unroll
  for (int ahead = 0; ahead < kAhead; ++ahead) read(raw[ahead]);

  const std::uint16_t* x[kTiles];
  float out[kMatrices][kOutputs] = {};
  std::int64_t work = first;
  int round = 0, buffer = 0;
  for (std::int64_t base = 0; base < steps; base += kAhead) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (base + ahead >= steps) break;
      if (round == 0) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          x[n] = problem.input(item, 8 * n + g);
          if (x[n] != nullptr) x[n] += input_first<kind>(q);
        }
      }
      float* sums_of = shared + buffer * kRowWarps * kMatrices * kColumns * kColumnStride;
      const int block = round * kRowWarps + warp;
      if (block < blocks) {
        const std::uint16_t* at[kTiles];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) at[n] = x[n] == nullptr ? nullptr : x[n] + block * kDepth;
#pragma unroll
        for (int m = 0; m < kMatrices; ++m) {
          float sums[kTiles][4] = {};
          multiply_block<kind, kParts, kTiles>(raw[ahead][m], at, problem.plane(), sums);
          const float factor_a = raw[ahead][m].factor(0), factor_b = raw[ahead][m].factor(1);
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
      read(raw[ahead]);
      __syncthreads();
      // Output o of the item is row o % 16 of column o / 16, and thread o % 256's.
      const int computed = min(kRowWarps, blocks - round * kRowWarps);
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
      buffer ^= 1;
      if (++round == rounds) {
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          const int at = tid + o * kRowThreads;
          float sums[kMatrices];
#pragma unroll
          for (int m = 0; m < kMatrices; ++m) {
            sums[m] = out[m][o];
            out[m][o] = 0;
          }
          if (at < kColumns * 16 && item.row + at % 16 < item.end) problem.store(item, at / 16, item.row + at % 16, sums);
        }
        round = 0;
        work += step;
        if (work < count) item = problem.item(work);
      }
    }
  }
}

}  // namespace hadal::cuda
