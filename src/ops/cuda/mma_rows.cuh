// Sixteen rows of a matrix times up to 64 tokens at a time, by blocks that keep reading weights while they
// sum: the linear maps of few tokens.
//
// The order of every sum is one, whatever the number of tokens and here as in mma_tiles.cuh: `in` falls into
// blocks of 128; each is summed by eight matrix instructions for each part of the input, the smallest part
// first; its sum is scaled, and the blocks are added up in ascending order. Which warp computed a block does
// not matter.
#pragma once

#include "ops/cuda/fragments.cuh"

namespace hadal::cuda {

constexpr int kRowWarps = 8;  // that share the blocks of a row
constexpr int kRowThreads = kRowWarps * kWarp;
constexpr int kColumnStride = 20;  // floats between the columns of 16 sums: no two banks meet

// Steps of eight blocks whose weights are on their way while another is summed, and blocks that a
// multiprocessor should hold: as many as registers allow.
constexpr int prefetched(int parts, int tiles) {
  return tiles == 1 && parts > 1 ? 2 : 1;
}
constexpr int row_blocks(int parts, int tiles) {
  return tiles > 2 ? 1 : tiles == 1 && parts == 1 ? 3 : 2;
}

// Block sums lie in shared memory until a thread adds them up: those of as many rounds (eight blocks, one of
// each warp) as there is room for, twice, so that the next ones can be written meanwhile.
struct RowShared {
  int rounds;
  std::size_t bytes;
};
inline RowShared row_shared(std::int64_t in, int tiles, int matrices) {
  const std::int64_t round = std::int64_t{kRowWarps} * matrices * 8 * tiles * kColumnStride * 4;
  const std::int64_t rounds = (in / kDepth + kRowWarps - 1) / kRowWarps;
  const std::int64_t room = std::int64_t{36} << 10;
  const std::int64_t kept = room / round < 1 ? 1 : room / round < rounds ? room / round : rounds;
  return {static_cast<int>(kept), static_cast<std::size_t>(2 * kept * round)};
}

// Four instructions of a block, whose input begins with the `first`-th eight entries of the thread's.
template <Kind kind>
__device__ inline void multiply_four(const std::uint32_t (&a)[4][4], const std::uint16_t* x, int first,
                                     float (&sums)[4]) {
  uint4 b[2];
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    b[v] =
        x == nullptr ? uint4{0, 0, 0, 0} : *reinterpret_cast<const uint4*>(x + input_place<kind>(first + v));
  }
#pragma unroll
  for (int s = 0; s < 4; ++s)
    mma(sums, a[s][0], a[s][1], a[s][2], a[s][3], word(b[s / 2], s % 2 * 2), word(b[s / 2], s % 2 * 2 + 1));
}

// sums[n] += rows g, g + 8 of the block times columns 8n .. 8n + 7. x[n]: the column's input at the thread's
// first k of the block, or null for none.
template <Kind kind, int kParts, int kTiles>
__device__ inline void multiply_block(const RawBlock<kind>& raw, const std::uint16_t* const (&x)[kTiles],
                                      std::int64_t plane, float (&sums)[kTiles][4]) {
  const bool folded = raw.folds();
  if constexpr (kParts == 1) {  // half of the operands at a time: registers are short
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t a[4][4];
      half == 0 ? raw.template fragments<0>(folded, a) : raw.template fragments<4>(folded, a);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) multiply_four<kind>(a, x[n], 2 * half, sums[n]);
    }
  } else {
    std::uint32_t a[2][4][4];
    raw.template fragments<0>(folded, a[0]);
    raw.template fragments<4>(folded, a[1]);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int part = kParts - 1; part >= 0; --part) {
        const std::uint16_t* from = x[n] == nullptr ? nullptr : x[n] + part * plane;
        multiply_four<kind>(a[0], from, 0, sums[n]);
        multiply_four<kind>(a[1], from, 2, sums[n]);
      }
    }
  }
}

// What a Problem says of one piece of work: 16 rows (below `end`) of matrices of one shape, and some tokens.
template <int kMatrices>
struct RowItem {
  WeightPointers w[kMatrices];
  int row, end;
  int first, columns;  // tokens: whatever `first` means to the Problem, and their number
};

// Works through items first, first + step, ... below `count` of a Problem, which has
//   kMatrices;  RowItem item(i);  const uint16_t* input(item, column);  in();  plane();
//   store(item, column, row, sums of each matrix);  warm(), which touches inputs that all items share
template <Kind kind, int kParts, int kTiles, class Problem>
__device__ inline void multiply_rows(const Problem& problem, int first, int step, int count,
                                     int kept_rounds) {
  extern __shared__ float shared[];
  constexpr int kMatrices = Problem::kMatrices, kColumns = 8 * kTiles, kOutputs = (kTiles + 1) / 2;
  constexpr int kAhead = prefetched(kParts, kTiles);
  constexpr int kBlockSums = kMatrices * kColumns * kColumnStride;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp, warp = tid / kWarp;
  const int g = lane / 4, q = lane % 4;
  if (first >= count) return;
  const std::int64_t in = problem.in();
  const auto blocks = static_cast<int>(in / kDepth);
  const int rounds = (blocks + kRowWarps - 1) / kRowWarps;
  const int steps = (count - first + step - 1) / step * rounds;

  // Where weights are being read, `kAhead` steps before they are summed, and the item behind, whose
  // description is on its way.
  problem.warm();
  RowItem<kMatrices> item = problem.item(first), reading_next = item;
  RowPointers<kind> reading[kMatrices];
  const auto start_reading = [&](const RowItem<kMatrices>& next) {
#pragma unroll
    for (int m = 0; m < kMatrices; ++m)
      reading[m] = RowPointers<kind>(next.w[m], in, min(next.row + g, next.end - 1),
                                     min(next.row + g + 8, next.end - 1), q);
  };
  start_reading(item);
  int read_work = first, read_round = 0;
  if (first + step < count) reading_next = problem.item(first + step);
  RawBlock<kind> raw[kAhead][kMatrices];
  const auto read = [&](RawBlock<kind>(&to)[kMatrices]) {
    if (read_work >= count) return;
    const int block = read_round * kRowWarps + warp;
    if (block < blocks) {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) to[m].load(reading[m], block);
    }
    if (++read_round == rounds) {
      read_round = 0;
      read_work += step;
      start_reading(reading_next);
      if (read_work + step < count) reading_next = problem.item(read_work + step);
    }
  };
#pragma unroll
  for (int ahead = 0; ahead < kAhead; ++ahead) read(raw[ahead]);

  const std::uint16_t* x[kTiles];
  float out[kMatrices][kOutputs] = {};
  int work = first, round = 0, kept = 0, buffer = 0, turn = 0;
  for (int base = 0; base < steps; base += kAhead) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (base + ahead >= steps) break;
      if (round == 0) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
          x[n] = 8 * n + g < item.columns ? problem.input(item, 8 * n + g) + input_first<kind>(q) : nullptr;
      }
      float* sums_of = shared + buffer * kept_rounds * kRowWarps * kBlockSums;
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
            float* to = sums_of + (kept * kRowWarps + warp) * kBlockSums +
                        (m * kColumns + 8 * n + 2 * q) * kColumnStride + g;
            if (8 * n + 2 * q < item.columns) {
              to[0] = sums[n][0] * factor_a;
              to[8] = sums[n][2] * factor_b;
            }
            if (8 * n + 2 * q + 1 < item.columns) {
              to[kColumnStride] = sums[n][1] * factor_a;
              to[kColumnStride + 8] = sums[n][3] * factor_b;
            }
          }
        }
      }
      read(raw[ahead]);
      const bool done = round + 1 == rounds;
      if (++kept == kept_rounds || done) {
        __syncthreads();
        // Output o of the item is row o % 16 of column o / 16. Warps take turns at having the first ones.
        const int computed = min(kept * kRowWarps, blocks - (round + 1 - kept) * kRowWarps);
        const int own = (tid + turn * kWarp) % kRowThreads;
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          const int at = own + o * kRowThreads;
          if (at < item.columns * 16) {
            const float* from = sums_of + at / 16 * kColumnStride + at % 16;
#pragma unroll
            for (int m = 0; m < kMatrices; ++m) {
              float sum = out[m][o];
#pragma unroll 8
              for (int b = 0; b < computed; ++b) sum += from[b * kBlockSums + m * kColumns * kColumnStride];
              out[m][o] = sum;
            }
            if (done) {
              float sums[kMatrices];
#pragma unroll
              for (int m = 0; m < kMatrices; ++m) {
                sums[m] = out[m][o];
                out[m][o] = 0;
              }
              if (item.row + at % 16 < item.end) problem.store(item, at / 16, item.row + at % 16, sums);
            }
          }
        }
        kept = 0;
        buffer ^= 1;
      }
      ++round;
      if (done) {
        round = 0;
        turn = (turn + 1) % kRowWarps;
        work += step;
        if (work < count) item = problem.item(work);
      }
    }
  }
}

}  // namespace hadal::cuda
