// 128 rows of matrices times 64 or 128 tokens by one block: the linear maps of many tokens, on the
// instructions of warpgroups. Weights become BF16 in registers, the input comes through shared memory.
//
// The sums are those of mma_rows.cuh bit for bit: the same blocks, parts and steps in the same order, and an
// instruction of a warpgroup sums 16 products as one of a warp does.
#pragma once

#include "ops/cuda/fragments.cuh"

namespace hadal::cuda {

constexpr int kTileRows64 = 64;  // of a warpgroup
constexpr int kTileThreads = 256;

constexpr int part_bytes(int tokens) {  // of a block's input
  return tokens * kDepth * 2;
}
constexpr int tile_stages(int parts, int tokens) {
  return parts == 1 ? 4 : tokens == 64 ? 4 : 2;
}
constexpr std::size_t tile_shared_bytes(int parts, int tokens) {
  return 1024 + static_cast<std::size_t>(tile_stages(parts, tokens) * parts * part_bytes(tokens));
}

__device__ inline void fence_operands() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
__device__ inline void copy_async(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Of an operand in shared memory: rows of 64 BF16 numbers, 128 bytes, whose 16-byte pieces are swizzled by
// row.
__device__ inline std::uint64_t operand(std::uint32_t address) {
  return ((address & 0x3ffff) >> 4) | std::uint64_t{1} << 16 | std::uint64_t{64} << 32 |
         std::uint64_t{1} << 62;
}

// d[64][64] (+)= a[64][16] b[64][16]^T; d[4n + i] is entry i of mma()'s d for columns 8n .. 8n + 7.
template <int kAccumulate>
__device__ inline void multiply_group(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%"
      "27,%28,%29,"
      "%30,%31}, {%32,%33,%34,%35}, %36, %37, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),
        "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
        "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate));
}
// The same for d[64][128], b[128][16].
template <int kAccumulate>
__device__ inline void multiply_group(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%"
      "27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%"
      "55,%56,%57,"
      "%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, %69, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),
        "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
        "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
        "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
        "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]),
        "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]),
        "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate));
}

// What a Problem says of a tile: for each of two warpgroups 64 rows of a matrix, and where their rows end.
struct TileItem {
  WeightPointers w[2];
  int row[2];
  int end;
  int first, columns;  // tokens: whatever `first` means to the Problem, and their number
};

// One tile of a Problem, which has
//   TileItem item(i);  const uint16_t* input(item, column);  any(), of it;  in();  plane();
//   kTokens;  store(item, sums, shared): sums[4n + i] as in multiply_group, shared memory for 68 x kTokens
//   floats
template <Kind kind, int kParts, class Problem>
__device__ inline void multiply_tile(const Problem& problem, int work) {
  extern __shared__ std::uint8_t unaligned[];
  constexpr int kTokens = Problem::kTokens, kStages = tile_stages(kParts, kTokens),
                kPartBytes = part_bytes(kTokens);
  __shared__ const std::uint16_t* column_of[kTokens];
  const std::uint32_t unaligned_at = static_cast<std::uint32_t>(__cvta_generic_to_shared(unaligned));
  const std::uint32_t stages = (unaligned_at + 1023) / 1024 * 1024;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp, g = lane / 4, q = lane % 4;
  const int group = tid / 128, warp = tid % 128 / kWarp;
  const TileItem item = problem.item(work);
  const WeightPointers w = group == 0 ? item.w[0] : item.w[1];
  const std::int64_t in = problem.in();
  const int row = (group == 0 ? item.row[0] : item.row[1]) + warp * 16 + g;
  const int row_a = min(row, item.end - 1), row_b = min(row + 8, item.end - 1);
  const auto blocks = static_cast<int>(in / kDepth);
  if (tid < kTokens) column_of[tid] = tid < item.columns ? problem.input(item, tid) : nullptr;
  __syncthreads();

  // Sixteen threads copy a column's 256 bytes of a block; thread t has columns t / 16, t / 16 + 16, ...
  const int piece = tid % 16;
  const auto copy = [&](int block) {
    const std::uint32_t stage = stages + static_cast<std::uint32_t>(block % kStages * kParts) * kPartBytes;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kTokens / 16; ++i) {
        const int column = tid / 16 + 16 * i;
        const std::uint16_t* from = column_of[column];
        const std::uint32_t to =
            stage + static_cast<std::uint32_t>(part * kPartBytes + piece / 8 * (kPartBytes / 2) +
                                               column * 128 + ((piece % 8) ^ (column % 8)) * 16);
        copy_async(
            to, from == nullptr ? problem.any() : from + part * problem.plane() + block * kDepth + piece * 8,
            from == nullptr ? 0 : 16);
      }
    }
  };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < blocks) copy(stage);
    commit_copies();
  }

  float total[kTokens / 2] = {};
  RawBlock<kind> raw;
  std::uint32_t a[2][2][4][4];
  float factor_a[2], factor_b[2];
  const RowPointers<kind> rows(w, in, row_a, row_b, q);
  raw.load(rows, 0);
  const auto make_fragments = [&](std::uint32_t(&to)[2][4][4]) {
    const bool folded = raw.folds();
    raw.template fragments<0>(folded, to[0]);
    raw.template fragments<4>(folded, to[1]);
  };
  make_fragments(a[0]);
  factor_a[0] = raw.factor(0);
  factor_b[0] = raw.factor(1);
  if (blocks > 1) raw.load(rows, 1);
  for (int first = 0; first < blocks; first += 2) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int block = first + odd;
      if (block >= blocks) break;
      wait_copies<kStages - 2>();
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();  // the block is there, and the one before has been used
      if (block + kStages - 1 < blocks) copy(block + kStages - 1);
      commit_copies();

      float sums[kTokens / 2];
      const std::uint32_t stage = stages + static_cast<std::uint32_t>(block % kStages * kParts) * kPartBytes;
      fence_operands();
#pragma unroll
      for (int part = kParts - 1; part >= 0; --part) {
#pragma unroll
        for (int s = 0; s < 8; ++s) {
          const std::uint32_t at =
              stage + static_cast<std::uint32_t>(part * kPartBytes + s / 4 * (kPartBytes / 2) + s % 4 * 32);
          if (part == kParts - 1 && s == 0)
            multiply_group<0>(sums, a[odd][s / 4][s % 4], operand(at));
          else
            multiply_group<1>(sums, a[odd][s / 4][s % 4], operand(at));
        }
      }
      commit_products();
      if (block + 1 < blocks) {
        make_fragments(a[1 - odd]);
        factor_a[1 - odd] = raw.factor(0);
        factor_b[1 - odd] = raw.factor(1);
        if (block + 2 < blocks) raw.load(rows, block + 2);
      }
      wait_products();
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n) {
        total[4 * n] = fmaf(sums[4 * n], factor_a[odd], total[4 * n]);
        total[4 * n + 1] = fmaf(sums[4 * n + 1], factor_a[odd], total[4 * n + 1]);
        total[4 * n + 2] = fmaf(sums[4 * n + 2], factor_b[odd], total[4 * n + 2]);
        total[4 * n + 3] = fmaf(sums[4 * n + 3], factor_b[odd], total[4 * n + 3]);
      }
    }
  }
  wait_copies<0>();
  __syncthreads();
  problem.store(item, total, reinterpret_cast<float*>(unaligned));
}

}  // namespace hadal::cuda
