// Core attention over window and compressed rows with a sink.
//
// Rows of the compact state are BF16 numbers and go through the matrix units, queries and exponentials as
// three BF16 parts each. The order of the sums is one: scores in pieces of 128 entries; the maximum of all
// rows first, so that no sum is ever rescaled; values in chunks of 64 rows, which are added up in ascending
// order whether one block computes them all or each has a block of its own. Other rows, and shapes that do
// not fit, are summed in float32 by plain kernels.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "ops/cuda/fragments.cuh"
#include "ops/cuda/ops.h"
#include "ops/cuda/weights.cuh"

namespace hadal::cuda {
namespace {

struct DeviceSegment {
  std::int64_t begin, count, start;
  const std::byte* window;
  const std::byte* const* pages;
  std::int64_t offset, per_page;
};

struct Attention {
  const float *q, *kv, *sink;
  float* out;
  float* scores;        // [T, heads, stride]: of rows, then their exponentials
  uint4* queries;       // fragments of q: [T, heads / 16, dim / 16, 3 parts, 32 lanes]
  uint4* exponentials;  // of the exponentials: [T, heads / 16, stride / 16, 3 parts, 32 lanes]
  float* sums;          // [T, heads]: denominators
  const DeviceSegment* segments;
  const std::int64_t* visible;  // null: no compressed rows
  const std::int32_t* selected;
  DeviceRowShape shape;
  std::int64_t n_tokens, n_segments, heads, window_rows, k, stride;
};

// AttentionRows (ops/attention_rows.h), here.
struct TokenRows {
  DeviceSegment segment;
  const float* fresh;
  const std::int32_t* selected;
  std::int64_t oldest, window, compressed, window_rows;

  __device__ TokenRows(const Attention& p, std::int64_t t) : fresh(p.kv), window_rows(p.window_rows) {
    std::int64_t low = 0, high = p.n_segments - 1;
    while (low < high) {
      const std::int64_t middle = (low + high + 1) / 2;
      if (p.segments[middle].begin <= t)
        low = middle;
      else
        high = middle - 1;
    }
    segment = p.segments[low];
    const std::int64_t position = segment.start + t - segment.begin;
    oldest = max(std::int64_t{0}, position - window_rows + 1);
    window = position + 1 - oldest;
    compressed = p.visible != nullptr ? p.visible[t] : 0;
    selected = nullptr;
    if (p.selected != nullptr) {
      selected = p.selected + t * p.k;
      compressed = min(p.k, compressed);
    }
  }
  __device__ std::int64_t count() const { return window + compressed; }
  // The row, and whether it is float32 whatever the state's format.
  __device__ const std::byte* row(const DeviceRowShape& shape, std::int64_t j, bool& is_fresh) const {
    is_fresh = false;
    if (j < window) {
      const std::int64_t position = oldest + j;
      if (position < segment.start) return segment.window + position % window_rows * shape.bytes;
      is_fresh = true;
      return reinterpret_cast<const std::byte*>(fresh +
                                                (segment.begin + position - segment.start) * shape.dim);
    }
    const std::int64_t b = selected != nullptr ? selected[j - window] : j - window;
    return segment.pages[b / segment.per_page] + segment.offset + b % segment.per_page * shape.bytes;
  }
};

// --- plain -------------------------------------------------------------------------------------------------

// A warp per row and head.
__global__ void plain_scores_kernel(Attention p) {
  const std::int64_t t = blockIdx.x / p.heads, h = blockIdx.x % p.heads;
  const TokenRows rows(p, t);
  const std::int64_t j = std::int64_t{blockIdx.y} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (j >= rows.count()) return;
  bool fresh;
  const std::byte* row = rows.row(p.shape, j, fresh);
  DeviceRowShape shape = p.shape;
  if (fresh) shape.format = RowFormat::f32;
  const float* q = p.q + (t * p.heads + h) * shape.dim;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < shape.dim; i += kWarp)
    sum = fmaf(q[i], row_entry(shape, row, i), sum);
  sum = warp_sum(sum);
  const float scale = static_cast<float>(1 / sqrt(static_cast<double>(shape.dim)));
  if (threadIdx.x % kWarp == 0) p.scores[(t * p.heads + h) * p.stride + j] = sum * scale;
}

// Scores to exponentials, and their sum with the sink; a block per token and head. Zeros up to whole chunks.
constexpr int kChunk = 64;
__global__ void softmax_kernel(Attention p) {
  __shared__ double scratch[32];
  __shared__ float maxima[32];
  const std::int64_t t = blockIdx.x, h = blockIdx.y;
  const TokenRows rows(p, t);
  const std::int64_t n = rows.count();
  float* scores = p.scores + (t * p.heads + h) * p.stride;
  float maximum = -INFINITY;
  for (std::int64_t j = threadIdx.x; j < n; j += blockDim.x) maximum = fmaxf(maximum, scores[j]);
  maximum = warp_max(maximum);
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = maximum;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) maximum = fmaxf(maximum, maxima[w]);
  double sum = 0;
  for (std::int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const float e = expf(scores[j] - maximum);
    scores[j] = e;
    sum += double{e};
  }
  for (std::int64_t j = n + threadIdx.x; j < (n + kChunk - 1) / kChunk * kChunk; j += blockDim.x)
    scores[j] = 0;
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0)
    p.sums[t * p.heads + h] = static_cast<float>(static_cast<double>(expf(p.sink[h] - maximum)) + sum);
}

// A thread per entry of the output, over all rows.
__global__ void plain_values_kernel(Attention p) {
  const std::int64_t t = blockIdx.x, h = blockIdx.y;
  const int i = static_cast<int>(blockIdx.z * blockDim.x + threadIdx.x);
  const TokenRows rows(p, t);
  if (i >= p.shape.dim) return;
  const float* e = p.scores + (t * p.heads + h) * p.stride;
  float sum = 0;
  for (std::int64_t j = 0; j < rows.count(); ++j) {
    bool fresh;
    const std::byte* row = rows.row(p.shape, j, fresh);
    DeviceRowShape shape = p.shape;
    if (fresh) shape.format = RowFormat::f32;
    sum = fmaf(e[j], row_entry(shape, row, i), sum);
  }
  p.out[(t * p.heads + h) * p.shape.dim + i] = sum / p.sums[t * p.heads + h];
}

// --- on the matrix units -----------------------------------------------------------------------------------

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

unsigned count(std::int64_t n) {
  return static_cast<unsigned>(n);
}

// Blocks that keep the device busy; below, chunks get blocks of their own.
constexpr std::int64_t kEnoughBlocks = 264;

}  // namespace

void sparse_attention(Recorder& r, const SparseAttentionParams& p) {
  HADAL_CHECK(!p.bf16);
  std::int64_t most = 0;
  for (const AttentionSegment& s : p.segments) {
    const auto last = static_cast<std::size_t>(s.begin + s.count - 1);
    std::int64_t rows = std::min(p.window_rows, s.start + s.count);
    if (!p.visible.empty()) rows += p.selected != nullptr ? std::min(p.k, p.visible[last]) : p.visible[last];
    most = std::max(most, rows);
  }
  // The launches of a decode step stay the same while rows come in.
  std::int64_t chunks = (most + kChunk - 1) / kChunk;
  if (p.n_tokens <= 512 && chunks > 4) chunks = (chunks + 7) / 8 * 8;
  const std::int64_t stride = chunks * kChunk, groups = (p.heads + kHeads - 1) / kHeads,
                     slices = p.row.dim / kSlice;
  const bool matrix = p.row.format == RowFormat::fp8_bf16 && p.row.dim % kSlice == 0 &&
                      p.row.rope_dim % 8 == 0 && p.heads % 16 == 0;
  const bool apart = chunks > 1 && p.n_tokens * slices * groups < kEnoughBlocks;

  Attention a{};
  a.scores = reinterpret_cast<float*>(
      r.scratch(kAttentionScores, static_cast<std::size_t>(p.n_tokens * p.heads * stride) * 4));
  a.sums =
      reinterpret_cast<float*>(r.scratch(kAttentionSums, static_cast<std::size_t>(p.n_tokens * p.heads) * 4));
  const std::int64_t query_parts = p.n_tokens * p.heads * p.row.dim * 3,
                     row_parts = p.n_tokens * p.heads * stride * 3;
  if (matrix) {
    a.queries =
        reinterpret_cast<uint4*>(r.scratch(kAttentionQueries, static_cast<std::size_t>(query_parts) * 2));
    a.exponentials =
        reinterpret_cast<uint4*>(r.scratch(kAttentionExponentials, static_cast<std::size_t>(row_parts) * 2));
  }
  float* partials = nullptr;
  if (matrix && apart) {
    partials = reinterpret_cast<float*>(r.scratch(
        kAttentionPartials, static_cast<std::size_t>(p.n_tokens * chunks * p.heads * p.row.dim) * 4));
  }
  std::vector<DeviceSegment> segments;
  segments.reserve(p.segments.size());
  for (const AttentionSegment& s : p.segments) {
    DeviceSegment segment{
        s.begin, s.count, s.start, s.window, nullptr, s.compressed.offset, s.compressed.per_page};
    const auto last = static_cast<std::size_t>(s.begin + s.count - 1);
    if (!p.visible.empty() && p.visible[last] > 0) {
      const std::int64_t pages = (p.visible[last] + s.compressed.per_page - 1) / s.compressed.per_page;
      segment.pages = r.stage(std::span(s.compressed.pages, static_cast<std::size_t>(pages)));
    }
    segments.push_back(segment);
  }
  a.q = p.q;
  a.kv = p.kv;
  a.sink = p.sink;
  a.out = p.out;
  a.segments = r.stage(std::span<const DeviceSegment>(segments));
  a.visible = p.visible.empty() ? nullptr : r.stage(p.visible);
  a.selected = p.selected;
  a.shape = device_shape(p.row);
  a.n_tokens = p.n_tokens;
  a.n_segments = static_cast<std::int64_t>(segments.size());
  a.heads = p.heads;
  a.window_rows = p.window_rows;
  a.k = p.k;
  a.stride = stride;

  const Range q = range(p.q, p.n_tokens * p.heads * p.row.dim), kv = range(p.kv, p.n_tokens * p.row.dim);
  const Range out = range(p.out, p.n_tokens * p.heads * p.row.dim),
              sums = range(a.sums, p.n_tokens * p.heads);
  const Range scores = range(a.scores, p.n_tokens * p.heads * stride);
  const Range selected = range(p.selected, p.selected != nullptr ? p.n_tokens * p.k : 0);
  const dim3 per_head(count(p.n_tokens), count(p.heads));
  if (!matrix) {
    r.launch(plain_scores_kernel, dim3(count(p.n_tokens * p.heads), count((most + 7) / 8)), 256, 0, a,
             {q, kv, selected, sequence_rows()}, {scores});
    r.launch(softmax_kernel, per_head, 256, 0, a, {scores}, {scores, sums});
    r.launch(plain_values_kernel, dim3(per_head.x, per_head.y, count((p.row.dim + 127) / 128)), 128, 0, a,
             {scores, sums, kv, selected, sequence_rows()}, {out});
    return;
  }
  const std::size_t tile = static_cast<std::size_t>(kChunk * (p.row.dim + kPadding)) * 2;
  const Range queries = range(a.queries, query_parts / 8),
              exponentials = range(a.exponentials, row_parts / 8);
  const std::int64_t fragments = p.n_tokens * (p.heads / 16) * (p.row.dim / 16);
  r.launch(split_queries_kernel, dim3(count((fragments + 7) / 8)), 256, 0, a, {q}, {queries});
  const dim3 grid(count(chunks), count(p.n_tokens), count(groups));
  if (p.n_tokens * chunks * groups < 2 * kEnoughBlocks)
    r.launch(scores_kernel<2>, grid, 2 * kMatrixThreads, tile, a, {queries, kv, selected, sequence_rows()},
             {scores});
  else
    r.launch(scores_kernel<1>, grid, kMatrixThreads, tile, a, {queries, kv, selected, sequence_rows()},
             {scores});
  r.launch(exponentials_kernel, dim3(count(p.n_tokens), count(p.heads / 16)), 16 * kWarp, 0, a, {scores},
           {scores, sums, exponentials});
  const ValuesArgs values{a, partials, chunks};
  const Range partial = range(partials, apart ? p.n_tokens * chunks * p.heads * p.row.dim : 0);
  r.launch(values_kernel, dim3(count(slices), count(p.n_tokens), count(groups * (apart ? chunks : 1))),
           kMatrixThreads, 0, values, {exponentials, sums, kv, selected, sequence_rows()},
           {apart ? partial : out});
  if (apart) r.launch(add_chunks_kernel, per_head, 128, 0, values, {partial, sums}, {out});
}

}  // namespace hadal::cuda
