// The linear maps of experts as Problems of mma_rows.cuh and mma_tiles.cuh: whose weights, which tokens, and
// what becomes of the sums.
#pragma once

#include "ops/cuda/mma_rows.cuh"
#include "ops/cuda/mma_tiles.cuh"

namespace hadal::cuda {

struct DeviceExpert {
  const std::uint8_t *w1, *s1, *w2, *s2, *w3, *s3;
};

// Consecutive slots of one expert.
struct Job {
  DeviceExpert e;
  int begin, count;
};

struct Routing {
  const DeviceExpert* experts;  // [E + 1], the shared one last; null weights: not here
  const std::int32_t* indices;  // [T, k]
  const float* weights;         // [T, k]
  std::int32_t* slot_of;        // [T, k], -1: not here
  std::int32_t* token_of;       // of each slot
  float* weight_of;             // of each slot
  Job* jobs;
  std::int32_t* n_jobs;
  std::int64_t n_tokens, n_experts, k;
};

__device__ inline float swiglu(float gate, float up, float weight, float limit) {
  const float g = fminf(gate, limit), u = fminf(fmaxf(up, -limit), limit);
  return weight * (g / (1.0F + expf(-g)) * u);
}

// One of the two launches over the experts of a format: the routed ones by jobs, or the shared one, whose
// slots come behind all pairs.
struct ExpertArgs {
  Routing r;
  PackedInput in;
  float* out;  // [slots, I] or [slots, d]
  std::int64_t dim, inter;
  int tile;  // tokens of a job
  int shared;
  float limit;
  int kept_rounds;  // RowShared

  __device__ int pairs() const { return static_cast<int>(r.n_tokens * r.k); }
  __device__ int jobs() const {
    return shared != 0 ? (static_cast<int>(r.n_tokens) + tile - 1) / tile : *r.n_jobs;
  }
  __device__ Job job(int i) const {
    if (shared == 0) return r.jobs[i];
    const DeviceExpert& e = r.experts[r.n_experts];
    return {e, pairs() + i * tile, min(tile, static_cast<int>(r.n_tokens) - i * tile)};
  }
  __device__ std::int64_t token(int slot) const { return shared != 0 ? slot - pairs() : r.token_of[slot]; }
  __device__ float weight(int slot) const { return shared != 0 ? 1.0F : r.weight_of[slot]; }
  // The packed input of w2 begins with this launch's own slots.
  __device__ std::int64_t hidden_row(int slot) const { return shared != 0 ? slot - pairs() : slot; }
};

// w1 and w3 of few tokens.
struct FewHidden {
  static constexpr int kMatrices = 2;
  const ExpertArgs& p;
  int row_tiles;

  __device__ RowItem<2> item(int i) const {
    const Job job = p.job(i / row_tiles);
    return {{{job.e.w1, job.e.s1}, {job.e.w3, job.e.s3}},
            i % row_tiles * 16,
            static_cast<int>(p.inter),
            job.begin,
            job.count};
  }
  __device__ const std::uint16_t* input(const RowItem<2>& item, int column) const {
    return p.in.x + p.token(item.first + column) * p.in.stride;
  }
  __device__ std::int64_t in() const { return p.dim; }
  __device__ std::int64_t plane() const { return p.in.plane; }
  __device__ void warm() const {
    if (p.r.n_tokens <= 2) touch(p.in.x, p.r.n_tokens * p.dim * 2);
  }
  __device__ void store(const RowItem<2>& item, int column, int row, const float (&sums)[2]) const {
    const int slot = item.first + column;
    p.out[slot * p.inter + row] = swiglu(sums[0], sums[1], p.weight(slot), p.limit);
  }
};

// w2 of few tokens.
struct FewOutput {
  static constexpr int kMatrices = 1;
  const ExpertArgs& p;
  int row_tiles;

  __device__ RowItem<1> item(int i) const {
    const Job job = p.job(i / row_tiles);
    return {{{job.e.w2, job.e.s2}}, i % row_tiles * 16, static_cast<int>(p.dim), job.begin, job.count};
  }
  __device__ const std::uint16_t* input(const RowItem<1>& item, int column) const {
    return p.in.x + p.hidden_row(item.first + column) * p.in.stride;
  }
  __device__ std::int64_t in() const { return p.inter; }
  __device__ std::int64_t plane() const { return p.in.plane; }
  __device__ void warm() const {}
  __device__ void store(const RowItem<1>& item, int column, int row, const float (&sums)[1]) const {
    p.out[(item.first + column) * p.dim + row] = sums[0];
  }
};

// w1 and w3 of many tokens: a warpgroup each, which meet in shared memory.
template <int kTileTokens>
struct ManyHidden {
  static constexpr int kTokens = kTileTokens;
  const ExpertArgs& p;
  int row_tiles;

  __device__ TileItem item(int i) const {
    const Job job = p.job(i / row_tiles);
    const int row = i % row_tiles * kTileRows64;
    return {{{job.e.w1, job.e.s1}, {job.e.w3, job.e.s3}},
            {row, row},
            static_cast<int>(p.inter),
            job.begin,
            job.count};
  }
  __device__ const std::uint16_t* input(const TileItem& item, int column) const {
    return p.in.x + p.token(item.first + column) * p.in.stride;
  }
  __device__ const void* any() const { return p.in.x; }
  __device__ std::int64_t in() const { return p.dim; }
  __device__ std::int64_t plane() const { return p.in.plane; }
  __device__ void store(const TileItem& item, const float (&sums)[kTokens / 2], float* shared) const {
    constexpr int kStride = kTileRows64 + 4;
    const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp,
              row_here = tid % 128 / kWarp * 16 + lane / 4;
    const auto at = [&](int n, int i) {
      return (8 * n + lane % 4 * 2 + i % 2) * kStride + row_here + i / 2 * 8;
    };
    if (tid >= 128) {
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) shared[at(n, i)] = sums[4 * n + i];
      }
    }
    __syncthreads();
    if (tid >= 128) return;
#pragma unroll
    for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + lane % 4 * 2 + i % 2, row = item.row[0] + row_here + i / 2 * 8;
        if (column >= item.columns || row >= item.end) continue;
        const int slot = item.first + column;
        p.out[slot * p.inter + row] = swiglu(sums[4 * n + i], shared[at(n, i)], p.weight(slot), p.limit);
      }
    }
  }
};

// w2 of many tokens.
template <int kTileTokens>
struct ManyOutput {
  static constexpr int kTokens = kTileTokens;
  const ExpertArgs& p;
  int row_tiles;

  __device__ TileItem item(int i) const {
    const Job job = p.job(i / row_tiles);
    const WeightPointers w{job.e.w2, job.e.s2};
    const int row = i % row_tiles * 2 * kTileRows64;
    return {{w, w}, {row, row + kTileRows64}, static_cast<int>(p.dim), job.begin, job.count};
  }
  __device__ const std::uint16_t* input(const TileItem& item, int column) const {
    return p.in.x + p.hidden_row(item.first + column) * p.in.stride;
  }
  __device__ const void* any() const { return p.in.x; }
  __device__ std::int64_t in() const { return p.inter; }
  __device__ std::int64_t plane() const { return p.in.plane; }
  __device__ void store(const TileItem& item, const float (&sums)[kTokens / 2], float*) const {
    const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp;
    const int row = item.row[0] + tid / kWarp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + lane % 4 * 2 + i % 2, r = row + i / 2 * 8;
        if (column < item.columns && r < item.end) p.out[(item.first + column) * p.dim + r] = sums[4 * n + i];
      }
    }
  }
};

}  // namespace hadal::cuda
