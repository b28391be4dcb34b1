// Core attention on the matrix units: rows of the compact state are BF16 numbers, queries and exponentials
// are three BF16 parts each.
//
// The order of the sums is one: scores in pieces of 128 entries; the maximum of all rows first, so that no
// sum is ever rescaled; values in chunks of 64 rows, which are added up in ascending order whether one block
// computes them all or each has a block of its own.
#pragma once

#include "ops/cuda/attention_rows.cuh"
#include "ops/cuda/fragments.cuh"

namespace hadal::cuda {
namespace {

constexpr int kHeads = 64;   // of a block: 16 for each of four warps
constexpr int kSlice = 128;  // entries of the output that a block computes
constexpr int kPadding = 8;  // BF16 numbers behind a row in shared memory: no two banks meet
constexpr int kMatrixThreads = 128;

// Entries [i, i + 8) of a row as BF16.
__device__ inline uint4 eight_entries(const DeviceRowShape& shape, const std::byte* row, bool fresh, int i) {
  if (fresh) {
    const auto* from = reinterpret_cast<const float4*>(reinterpret_cast<const float*>(row) + i);
    const float4 a = from[0], b = from[1];
    return {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)};
  }
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(row);
  if (i >= shape.codes) {  // rows begin at multiples of eight bytes
    const auto* from = reinterpret_cast<const uint2*>(bytes + shape.rope_at + 2 * (i - shape.codes));
    return {from[0].x, from[0].y, from[1].x, from[1].y};
  }
  const uint2 codes = *reinterpret_cast<const uint2*>(bytes + i);
  const std::uint32_t scale = bf16_scale(bytes[shape.codes + i / 64]);
  std::uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    std::uint32_t even, odd;
    from_e4m3(w == 0 ? codes.x : codes.y, even, odd);
    even = multiply_bf16(even, scale);
    odd = multiply_bf16(odd, scale);
    words[2 * w] = __byte_perm(even, odd, 0x5410);
    words[2 * w + 1] = __byte_perm(even, odd, 0x7632);
  }
  return {words[0], words[1], words[2], words[3]};
}

// Entries [first, first + width) of the rows of a chunk into shared memory; zeros behind the last row. A
// thread has eight entries of every so many rows.
__device__ inline void load_chunk(const Attention& p, const TokenRows& rows, std::int64_t chunk, int first,
                                  int width, std::uint16_t* tile, const std::byte** row_of, bool* fresh_of) {
  const int tid = static_cast<int>(threadIdx.x), stride = width + kPadding, units = width / 8;
  for (int r = tid; r < kChunk; r += static_cast<int>(blockDim.x)) {
    const std::int64_t j = chunk * kChunk + r;
    bool fresh = false;
    row_of[r] = j < rows.count() ? rows.row(p.shape, j, fresh) : nullptr;
    fresh_of[r] = fresh;
  }
  __syncthreads();
  const int at_once = static_cast<int>(blockDim.x) / units, unit = tid % units;
  if (tid < at_once * units) {
#pragma unroll 8
    for (int r = tid / units; r < kChunk; r += at_once) {
      const uint4 v = row_of[r] == nullptr ? uint4{0, 0, 0, 0}
                                           : eight_entries(p.shape, row_of[r], fresh_of[r], first + unit * 8);
      *reinterpret_cast<uint4*>(tile + r * stride + unit * 8) = v;
    }
  }
  __syncthreads();
}

// The fragments of 16 rows and 16 columns of a float32 matrix, `stride` between rows, as three BF16 parts.
__device__ inline void split_fragment(const float* from, std::int64_t stride, int lane, uint4* to) {
  const float* a = from + lane / 4 * stride + lane % 4 * 2;
  const float* b = a + 8 * stride;
  const float2 v[4] = {*reinterpret_cast<const float2*>(a), *reinterpret_cast<const float2*>(b),
                       *reinterpret_cast<const float2*>(a + 8), *reinterpret_cast<const float2*>(b + 8)};
  std::uint32_t parts[3][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Parts x = split(v[i].x), y = split(v[i].y);
    parts[0][i] = pack_bf16(x.high, y.high);
    parts[1][i] = pack_bf16(x.middle, y.middle);
    parts[2][i] = pack_bf16(x.low, y.low);
  }
#pragma unroll
  for (int part = 0; part < 3; ++part)
    to[part * kWarp + lane] = {parts[part][0], parts[part][1], parts[part][2], parts[part][3]};
}

// A warp per 16 heads and 16 entries of a token's queries.
__global__ void split_queries_kernel(Attention p) {
  const std::int64_t unit = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const std::int64_t steps = p.shape.dim / 16, groups = p.heads / 16;
  if (unit >= p.n_tokens * groups * steps) return;
  const std::int64_t step = unit % steps, head = unit / steps * 16;  // of all tokens' heads
  split_fragment(p.q + head * p.shape.dim + step * 16, p.shape.dim, static_cast<int>(threadIdx.x) % kWarp,
                 p.queries + unit * 3 * kWarp);
}

__device__ inline void load_matrices(const std::uint16_t* at, std::uint32_t (&b)[4]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address));
}

// Scores of a chunk of 64 rows: grid (chunks, T, heads / 64). A warp has 16 heads and all rows, or half of
// them.
template <int kHalves>
__global__ void __launch_bounds__(kHalves* kMatrixThreads) scores_kernel(Attention p) {
  constexpr int kTiles = 8 / kHalves;
  extern __shared__ std::uint16_t tile[];  // [64][dim + padding]
  __shared__ const std::byte* row_of[kChunk];
  __shared__ bool fresh_of[kChunk];
  const std::int64_t t = blockIdx.y, chunk = blockIdx.x;
  const TokenRows rows(p, t);
  if (chunk * kChunk >= rows.count()) return;
  const int dim = p.shape.dim, stride = dim + kPadding, steps = dim / 16;
  load_chunk(p, rows, chunk, 0, dim, tile, row_of, fresh_of);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, first_row = warp / 4 * (kChunk / kHalves);
  const std::int64_t head = std::int64_t{blockIdx.z} * kHeads + warp % 4 * 16;
  if (head >= p.heads) return;
  const uint4* queries = p.queries + (t * p.heads + head) / 16 * steps * 3 * kWarp + lane;
  const std::uint16_t* from = tile + (first_row + lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
  float sums[kTiles][4] = {};
  constexpr int kSteps = 8;                              // of 16 entries, summed by the matrix units alone
  constexpr int kAhead = kHalves == 1 ? 1 : kSteps / 2;  // steps whose queries are on their way
  uint4 next[kAhead][3];
#pragma unroll
  for (int ahead = 0; ahead < kAhead; ++ahead) {
#pragma unroll
    for (int part = 0; part < 3; ++part) next[ahead][part] = queries[(ahead * 3 + part) * kWarp];
  }
  for (int first = 0; first < steps; first += kSteps) {
    float large[kTiles][4] = {}, small[kTiles][4] = {};  // of the first parts and of the others
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int step = first + i;
      uint4 a[3];
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        a[part] = next[i % kAhead][part];
        if (step + kAhead < steps) next[i % kAhead][part] = queries[((step + kAhead) * 3 + part) * kWarp];
      }
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair) {
        std::uint32_t b[4];
        load_matrices(from + pair * 16 * stride + step * 16, b);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          mma(small[2 * pair + n], a[2].x, a[2].y, a[2].z, a[2].w, b[2 * n], b[2 * n + 1]);
          mma(small[2 * pair + n], a[1].x, a[1].y, a[1].z, a[1].w, b[2 * n], b[2 * n + 1]);
          mma(large[2 * pair + n], a[0].x, a[0].y, a[0].z, a[0].w, b[2 * n], b[2 * n + 1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] += large[n][i] + small[n][i];
    }
  }
  const float scale = static_cast<float>(1 / sqrt(static_cast<double>(dim)));
  float* to = p.scores + (t * p.heads + head + g) * p.stride + chunk * kChunk + first_row + 2 * q;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    *reinterpret_cast<float2*>(to + 8 * n) = {sums[n][0] * scale, sums[n][1] * scale};
    *reinterpret_cast<float2*>(to + 8 * p.stride + 8 * n) = {sums[n][2] * scale, sums[n][3] * scale};
  }
}

// Scores of 16 heads to exponentials, their sums with the sink, and fragments; a warp per head.
__global__ void __launch_bounds__(16 * kWarp) exponentials_kernel(Attention p) {
  const std::int64_t t = blockIdx.x, group = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const TokenRows rows(p, t);
  const auto n = static_cast<int>(rows.count()), padded = (n + kChunk - 1) / kChunk * kChunk;
  const std::int64_t head = t * p.heads + group * 16 + warp;
  float* scores = p.scores + head * p.stride;
  float maximum = -INFINITY;
#pragma unroll 4
  for (int j = lane; j < n; j += kWarp) maximum = fmaxf(maximum, scores[j]);
  maximum = warp_max(maximum);
  double sum = 0;
#pragma unroll 4
  for (int j = lane; j < padded; j += kWarp) {
    const float e = j < n ? expf(scores[j] - maximum) : 0.0F;
    scores[j] = e;
    sum += double{e};
  }
  sum = warp_sum(sum);
  if (lane == 0)
    p.sums[head] = static_cast<float>(static_cast<double>(expf(p.sink[group * 16 + warp] - maximum)) + sum);
  __syncthreads();
  const std::int64_t steps = p.stride / 16, first = t * p.heads + group * 16;
  for (int step = warp; step < padded / 16; step += 16)
    split_fragment(p.scores + first * p.stride + step * 16, p.stride, lane,
                   p.exponentials + (first / 16 * steps + step) * 3 * kWarp);
}

__device__ inline void load_transposed(const std::uint16_t* at, std::uint32_t (&b)[4]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address));
}

struct ValuesArgs {
  Attention a;
  float* partials;      // [T, chunks, heads, dim]; null: a block takes all chunks
  std::int64_t chunks;  // of the longest token
};
// Values: grid (dim / 128, T, heads / 64 times chunks, if they are apart).
__global__ void __launch_bounds__(kMatrixThreads, 2) values_kernel(ValuesArgs args) {
  __shared__ std::uint16_t tile[kChunk * (kSlice + kPadding)];
  __shared__ const std::byte* row_of[kChunk];
  __shared__ bool fresh_of[kChunk];
  const Attention& p = args.a;
  const std::int64_t t = blockIdx.y, dim = p.shape.dim;
  const TokenRows rows(p, t);
  const std::int64_t all = (rows.count() + kChunk - 1) / kChunk;
  const bool apart = args.partials != nullptr;
  const std::int64_t first = apart ? blockIdx.z % args.chunks : 0, last = apart ? first + 1 : all;
  if (first >= all) return;
  const std::int64_t group = apart ? blockIdx.z / args.chunks : blockIdx.z;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const std::int64_t head = group * kHeads + threadIdx.x / kWarp * 16;
  const bool works = head < p.heads;  // the others only load rows
  const int slice = static_cast<int>(blockIdx.x) * kSlice;
  const uint4* e =
      p.exponentials + (t * p.heads + (works ? head : 0)) / 16 * (p.stride / 16) * 3 * kWarp + lane;
  float sums[16][4] = {};
  for (std::int64_t chunk = first; chunk < last; ++chunk) {
    load_chunk(p, rows, chunk, slice, kSlice, tile, row_of, fresh_of);
    if (works) {
      float part[16][4] = {};
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        const uint4* from = e + (chunk * (kChunk / 16) + step) * 3 * kWarp;
        const uint4 a[3] = {from[0], from[kWarp], from[2 * kWarp]};
#pragma unroll
        for (int pair = 0; pair < 8; ++pair) {
          std::uint32_t b[4];
          load_transposed(tile + (step * 16 + lane % 16) * (kSlice + kPadding) + pair * 16 + lane / 16 * 8,
                          b);
#pragma unroll
          for (int i = 2; i >= 0; --i) {
            mma(part[2 * pair], a[i].x, a[i].y, a[i].z, a[i].w, b[0], b[1]);
            mma(part[2 * pair + 1], a[i].x, a[i].y, a[i].z, a[i].w, b[2], b[3]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < 16; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] += part[n][i];
      }
    }
    __syncthreads();
  }
  if (!works) return;
  float* to = apart ? args.partials + ((t * args.chunks + first) * p.heads + head + g) * dim + slice + 2 * q
                    : p.out + (t * p.heads + head + g) * dim + slice + 2 * q;
  const float over = apart ? 1.0F : p.sums[t * p.heads + head + g],
              over_8 = apart ? 1.0F : p.sums[t * p.heads + head + g + 8];
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    *reinterpret_cast<float2*>(to + 8 * n) = {sums[n][0] / over, sums[n][1] / over};
    *reinterpret_cast<float2*>(to + 8 * dim + 8 * n) = {sums[n][2] / over_8, sums[n][3] / over_8};
  }
}

// Chunks that were computed apart, added up; a block per token and head.
__global__ void add_chunks_kernel(ValuesArgs args) {
  const Attention& p = args.a;
  const std::int64_t t = blockIdx.x, h = blockIdx.y, dim = p.shape.dim;
  const TokenRows rows(p, t);
  const std::int64_t all = (rows.count() + kChunk - 1) / kChunk;
  for (std::int64_t i = threadIdx.x; i < dim; i += blockDim.x) {
    const float* from = args.partials + (t * args.chunks * p.heads + h) * dim + i;
    float sum = 0;
#pragma unroll 8
    for (std::int64_t chunk = 0; chunk < all; ++chunk) sum += from[chunk * p.heads * dim];
    p.out[(t * p.heads + h) * dim + i] = sum / p.sums[t * p.heads + h];
  }
}

}  // namespace
}  // namespace hadal::cuda
