// The lightning indexer: scores of compressed rows and the best of them.
//
// Scores over FP4 rows have the bits that IndexScoresParams fixes: the matrix units sum a block of 32
// exactly, everything else has its one order in float32.
#include <algorithm>
#include <vector>

#include "ops/cuda/fragments.cuh"
#include "ops/cuda/ops.h"
#include "ops/cuda/weights.cuh"

namespace hadal::cuda {
namespace {

struct Scores {
  const float *q, *weights;
  const std::byte* const* const* pages;  // of each token's sequence
  const std::int64_t* visible;
  float* scores;
  std::int64_t offset, per_page, stride, heads;
  DeviceRowShape shape;
};

// --- plain -------------------------------------------------------------------------------------------------

constexpr int kPlainRows = 32;

__device__ inline float fp4_entry(const DeviceRowShape& shape, const std::byte* rows, std::int64_t i, int k) {
  const auto* tile = reinterpret_cast<const std::uint8_t*>(rows) + i / kTileRows * kTileRows * shape.bytes;
  const auto in_tile = static_cast<int>(i % kTileRows);
  const unsigned pair = tile[(k / 8 * 16 + in_tile) * 4 + k % 8 / 2];
  return e2m1(k % 2 == 0 ? pair & 15 : pair >> 4) * e8m0(tile[16 * (shape.dim / 2) + k / 32 * 16 + in_tile]);
}

// A thread per row, rows and query in shared memory.
__global__ void plain_scores_kernel(Scores p) {
  extern __shared__ float shared[];  // [32][dim + 1] rows
  const std::int64_t t = blockIdx.y, first = std::int64_t{blockIdx.x} * kPlainRows;
  const std::int64_t n = min(std::int64_t{kPlainRows}, p.visible[t] - first);
  if (n <= 0) return;
  const int dim = p.shape.dim, tid = static_cast<int>(threadIdx.x);
  for (std::int64_t at = tid; at < n * dim; at += blockDim.x) {
    const std::int64_t b = first + at / dim;
    const auto k = static_cast<int>(at % dim);
    const std::byte* rows = p.pages[t][b / p.per_page] + p.offset;
    const std::int64_t i = b % p.per_page;
    shared[at / dim * (dim + 1) + k] = p.shape.format == RowFormat::f32
                                           ? row_entry(p.shape, rows + i * p.shape.bytes, k)
                                           : fp4_entry(p.shape, rows, i, k);
  }
  __syncthreads();
  if (tid >= n) return;
  const float* row = shared + tid * (dim + 1);
  float score = 0;
  for (std::int64_t h = 0; h < p.heads; ++h) {
    const float* q = p.q + (t * p.heads + h) * dim;
    float dot = 0;
    for (int first_of_block = 0; first_of_block < dim; first_of_block += 32) {
      float block = 0;
      for (int k = first_of_block; k < min(first_of_block + 32, dim); ++k) block = fmaf(q[k], row[k], block);
      dot += block;
    }
    score = fmaf(p.weights[t * p.heads + h], dot > 0 ? dot : 0.0F, score);
  }
  p.scores[t * p.stride + first + tid] = score;
}

// --- on the matrix units -----------------------------------------------------------------------------------

constexpr int kWarps = 4, kRows = 32;  // of a warp: two tiles of the state
constexpr int kMostDim = 128, kMostHeads = 64;

// Queries in shared memory once, then 128 rows after another. Queries are E2M1 numbers times a power of two:
// BF16 holds them.
__global__ void __launch_bounds__(kWarps* kWarp) scores_kernel(Scores p) {
  extern __shared__ std::uint16_t queries[];  // [heads][dim + 8], then the dots [warps][32][heads + 1]
  const int dim = p.shape.dim, stride = dim + 8, tid = static_cast<int>(threadIdx.x);
  const auto heads = static_cast<int>(p.heads);
  auto* dots = reinterpret_cast<float*>(queries + heads * stride);
  const std::int64_t t = blockIdx.y, visible = p.visible[t];
  if (std::int64_t{blockIdx.x} * kWarps * kRows >= visible) return;
  const auto* q_eights = reinterpret_cast<const float4*>(p.q + t * heads * dim);
#pragma unroll 4
  for (int eight = tid; eight < heads * dim / 8; eight += static_cast<int>(blockDim.x)) {
    const float4 a = q_eights[2 * eight], b = q_eights[2 * eight + 1];  // as pairs (i, i + 4)
    *reinterpret_cast<uint4*>(queries + eight * 8 / dim * stride + eight * 8 % dim) = {
        pack_bf16(a.x, b.x), pack_bf16(a.y, b.y), pack_bf16(a.z, b.z), pack_bf16(a.w, b.w)};
  }
  __syncthreads();
  const int lane = tid % kWarp, warp = tid / kWarp, g = lane / 4, q = lane % 4;
  float* own_dots = dots + warp * kRows * (heads + 1);
  for (std::int64_t first = (std::int64_t{blockIdx.x} * kWarps + warp) * kRows; first < visible;
       first += std::int64_t{gridDim.x} * kWarps * kRows) {
    for (int half = 0; half < 2; ++half) {
      const std::int64_t b = first + half * kTileRows;
      if (b >= visible) break;
      const auto* tile = reinterpret_cast<const std::uint8_t*>(p.pages[t][b / p.per_page]) + p.offset +
                         b % p.per_page / kTileRows * kTileRows * p.shape.bytes;
      std::uint32_t a[kMostDim / 32][2][4];
      float scale[kMostDim / 32][2];
#pragma unroll
      for (int block = 0; block < kMostDim / 32; ++block) {
        if (block * 32 >= dim) break;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = g + 8 * i;
          const auto codes = *reinterpret_cast<const std::uint32_t*>(tile + ((block * 4 + q) * 16 + row) * 4);
          std::uint32_t pairs[4];
          from_e2m1(codes, kE2m1Bias, pairs);
          a[block][0][i] = pairs[0];
          a[block][0][2 + i] = pairs[1];
          a[block][1][i] = pairs[2];
          a[block][1][2 + i] = pairs[3];
          scale[block][i] = e8m0(tile[16 * (dim / 2) + block * 16 + row]);
        }
      }
      for (int n = 0; n < heads / 8; ++n) {
        float dot[4] = {};
#pragma unroll
        for (int block = 0; block < kMostDim / 32; ++block) {
          if (block * 32 >= dim) break;
          const uint4 x =
              *reinterpret_cast<const uint4*>(queries + (8 * n + g) * stride + block * 32 + q * 8);
          float sum[4] = {};
          mma(sum, a[block][0][0], a[block][0][1], a[block][0][2], a[block][0][3], x.x, x.y);
          mma(sum, a[block][1][0], a[block][1][1], a[block][1][2], a[block][1][3], x.z, x.w);
          dot[0] += sum[0] * scale[block][0];
          dot[1] += sum[1] * scale[block][0];
          dot[2] += sum[2] * scale[block][1];
          dot[3] += sum[3] * scale[block][1];
        }
        float* to = own_dots + (half * kTileRows + g) * (heads + 1) + 8 * n + 2 * q;
        to[0] = dot[0];
        to[1] = dot[1];
        to[8 * (heads + 1)] = dot[2];
        to[8 * (heads + 1) + 1] = dot[3];
      }
    }
    __syncwarp();
    if (first + lane < visible) {
      const float* own = own_dots + lane * (heads + 1);
      float score = 0;
      for (int h = 0; h < heads; ++h)
        score = fmaf(p.weights[t * heads + h], own[h] > 0 ? own[h] : 0.0F, score);
      p.scores[t * p.stride + first + lane] = score;
    }
    __syncwarp();
  }
}

// --- the choice --------------------------------------------------------------------------------------------

// Unsigned numbers in the order of preference: the larger the better. -0 is 0, a NaN minus infinity.
__device__ inline std::uint32_t key_of(float score) {
  if (isnan(score)) score = -INFINITY;
  if (score == 0) score = 0;
  const std::uint32_t bits = __float_as_uint(score);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

struct SelectArgs {
  const float* scores;
  const std::int64_t* visible;
  std::int32_t* indices;
  std::int64_t stride, k;
};
constexpr int kSelectThreads = 1024, kBins = 2048;

// A block per token: the k-th largest key by radix, eleven bits at a time, then the rows at or above it in
// order; of those at it the lowest.
__global__ void __launch_bounds__(kSelectThreads) select_kernel(SelectArgs p) {
  __shared__ int bins[kBins];
  __shared__ int above_of[kWarp], equal_of[kWarp];
  __shared__ std::uint32_t chosen_bin;
  __shared__ int left;
  const std::int64_t t = blockIdx.x, n = p.visible[t];
  const auto k = static_cast<int>(p.k);
  std::int32_t* out = p.indices + t * k;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp, warp = tid / kWarp;
  if (n <= k) {
    for (int i = tid; i < k; i += kSelectThreads) out[i] = i < n ? i : -1;
    return;
  }
  const float* scores = p.scores + t * p.stride;
  std::uint32_t prefix = 0;
  int wanted = k;
  for (int shift = 21; shift >= -1; shift -= 11) {  // bits 21.., 10.., and the last ten
    const int low = max(shift, 0), width = shift < 0 ? 10 : 11;
    const std::uint32_t mask = (1U << width) - 1;
    for (int i = tid; i < kBins; i += kSelectThreads) bins[i] = 0;
    __syncthreads();
    const int fixed = low + width;  // bits from here up are `prefix`
    for (std::int64_t b = tid; b < n; b += kSelectThreads) {
      const std::uint32_t key = key_of(scores[b]);
      if (fixed == 32 || key >> fixed == prefix) atomicAdd(&bins[key >> low & mask], 1);
    }
    __syncthreads();
    if (warp == 0) {
      // Lane l sums the bins from the top that are its own; then the one where `wanted` is reached looks
      // closer.
      constexpr int kOwn = kBins / kWarp;
      int own = 0;
      for (int i = 0; i < kOwn; ++i) own += bins[kBins - 1 - (lane * kOwn + i)];
      int upto = own;
      for (int distance = 1; distance < kWarp; distance *= 2) {
        const int other = __shfl_up_sync(kAll, upto, distance);
        if (lane >= distance) upto += other;
      }
      int before = upto - own;
      if (before < wanted && wanted <= upto) {
        int bin = kBins - 1 - lane * kOwn;
        while (before + bins[bin] < wanted) before += bins[bin--];
        chosen_bin = static_cast<std::uint32_t>(bin);
        left = wanted - before;
      }
    }
    __syncthreads();
    prefix = prefix << width | chosen_bin;
    wanted = left;
    __syncthreads();
  }
  // Each warp has a range of rows: it counts, learns what the warps before it take, and writes.
  const std::int64_t range = (n + kWarp * kWarp - 1) / (kWarp * kWarp) * kWarp;
  const std::int64_t begin = min(n, warp * range), end = min(n, begin + range);
  int above = 0, equal = 0;
#pragma unroll 4
  for (std::int64_t b = begin + lane; b < end; b += kWarp) {
    const std::uint32_t key = key_of(scores[b]);
    above += key > prefix ? 1 : 0;
    equal += key == prefix ? 1 : 0;
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    above += __shfl_xor_sync(kAll, above, distance);
    equal += __shfl_xor_sync(kAll, equal, distance);
  }
  if (lane == 0) {
    above_of[warp] = above;
    equal_of[warp] = equal;
  }
  __syncthreads();
  int above_before = 0, equal_before = 0;
  for (int w = 0; w < warp; ++w) {
    above_before += above_of[w];
    equal_before += equal_of[w];
  }
  const unsigned below = (1U << lane) - 1;
  for (std::int64_t first = begin; first < end; first += kWarp) {
    const std::int64_t b = first + lane;
    const std::uint32_t key = b < end ? key_of(scores[b]) : 0;
    const unsigned is_above = __ballot_sync(kAll, b < end && key > prefix);
    const unsigned is_equal = __ballot_sync(kAll, b < end && key == prefix);
    const int equal_here = equal_before + __popc(is_equal & below);
    const int place = above_before + __popc(is_above & below) + min(equal_here, wanted);
    if (b < end && (key > prefix || (key == prefix && equal_here < wanted)))
      out[place] = static_cast<std::int32_t>(b);
    above_before += __popc(is_above);
    equal_before += __popc(is_equal);
  }
}

unsigned count(std::int64_t n) {
  return static_cast<unsigned>(n);
}

void launch_scores(Recorder& r, const Scores& args, std::int64_t n_tokens, std::int64_t most) {
  const Range q = range(args.q, n_tokens * args.heads * args.shape.dim),
              weights = range(args.weights, n_tokens * args.heads);
  const Range scores = range(args.scores, n_tokens * args.stride);
  const bool matrix = args.shape.format == RowFormat::fp4_tiles && args.shape.dim <= kMostDim &&
                      args.heads % 8 == 0 && args.heads <= kMostHeads && args.per_page % kTileRows == 0;
  if (matrix) {
    const auto heads = static_cast<std::size_t>(args.heads);
    const std::size_t shared =
        heads * static_cast<std::size_t>(args.shape.dim + 8) * 2 + kWarps * kRows * (heads + 1) * 4;
    const std::int64_t groups = (most + kWarps * kRows - 1) / (kWarps * kRows);
    const std::int64_t enough =
        std::max<std::int64_t>(1, 528 / n_tokens);  // blocks that keep the device busy
    r.launch(scores_kernel, dim3(count(std::min(groups, enough)), count(n_tokens)), kWarps * kWarp, shared,
             args, {q, weights, sequence_rows()}, {scores});
    return;
  }
  const std::size_t shared = static_cast<std::size_t>(kPlainRows * (args.shape.dim + 1)) * 4;
  r.launch(plain_scores_kernel, dim3(count((most + kPlainRows - 1) / kPlainRows), count(n_tokens)), 128,
           shared, args, {q, weights, sequence_rows()}, {scores});
}

// `most` rounded up, so that the launches of a decode step stay the same while rows come in.
std::int64_t padded(std::int64_t most) {
  return (most + 1023) / 1024 * 1024;
}

// Tokens whose scores are kept at a time.
std::int64_t tokens_at_once(std::int64_t most) {
  constexpr std::int64_t kMostScores = std::int64_t{1} << 28;
  return std::max<std::int64_t>(1, kMostScores / std::max<std::int64_t>(padded(most), 1));
}

const std::byte* const* stage_pages(Recorder& r, const PagedRows& rows, std::int64_t visible) {
  const std::int64_t pages = (visible + rows.per_page - 1) / rows.per_page;
  return r.stage(std::span(rows.pages, static_cast<std::size_t>(pages)));
}

}  // namespace

void index_scores(Recorder& r, const IndexScoresParams& p) {
  const std::int64_t most = *std::max_element(p.visible.begin(), p.visible.end());
  if (most == 0) return;
  const std::vector<const std::byte* const*> pages(p.visible.size(), stage_pages(r, p.rows, most));
  const Scores args{p.q,
                    p.weights,
                    r.stage(std::span(pages)),
                    r.stage(p.visible),
                    p.scores,
                    p.rows.offset,
                    p.rows.per_page,
                    p.stride,
                    p.heads,
                    device_shape(p.rows.shape)};
  launch_scores(r, args, p.n_tokens, most);
}

bool IndexSelection::add(Recorder& r, const IndexSelectParams& p) {
  if (!visible.empty()) {
    const auto n = static_cast<std::int64_t>(visible.size());
    const bool follows = p.q == first.q + n * p.heads * p.dim && p.weights == first.weights + n * p.heads &&
                         p.indices == first.indices + n * p.k && p.k == first.k && p.heads == first.heads &&
                         p.dim == first.dim && p.rows.offset == first.rows.offset &&
                         p.rows.per_page == first.rows.per_page &&
                         p.rows.shape.format == first.rows.shape.format;
    if (!follows) return false;
  } else {
    first = p;
  }
  const std::int64_t most = *std::max_element(p.visible.begin(), p.visible.end());
  pages.insert(pages.end(), p.visible.size(), most > 0 ? stage_pages(r, p.rows, most) : nullptr);
  visible.insert(visible.end(), p.visible.begin(), p.visible.end());
  return true;
}

void IndexSelection::record(Recorder& r) {
  if (visible.empty()) return;
  const IndexSelectParams& p = first;
  const auto n_tokens = static_cast<std::int64_t>(visible.size());
  const std::int64_t most = *std::max_element(visible.begin(), visible.end());
  const std::int64_t stride = padded(most);
  auto* scores = reinterpret_cast<float*>(
      r.scratch(kIndexScores,
                static_cast<std::size_t>(std::min(n_tokens, tokens_at_once(most)) * stride) * sizeof(float)));
  const std::byte* const* const* pages_of = r.stage(std::span<const std::byte* const* const>(pages));
  const std::int64_t* visible_of = r.stage(std::span<const std::int64_t>(visible));
  for (std::int64_t t = 0, at_once = tokens_at_once(most); t < n_tokens; t += at_once) {
    const std::int64_t n = std::min(at_once, n_tokens - t);
    if (most > p.k) {
      launch_scores(r,
                    {p.q + t * p.heads * p.dim, p.weights + t * p.heads, pages_of + t, visible_of + t, scores,
                     p.rows.offset, p.rows.per_page, stride, p.heads, device_shape(p.rows.shape)},
                    n, stride);
    }
    r.launch(select_kernel, dim3(count(n)), kSelectThreads, 0,
             SelectArgs{scores, visible_of + t, p.indices + t * p.k, stride, p.k},
             {range(scores, n * stride)}, {range(p.indices + t * p.k, n * p.k)});
  }
  visible.clear();
  pages.clear();
}

}  // namespace hadal::cuda
