// Core attention over window and compressed rows with a sink: on the matrix units where rows and shapes suit
// them (attention_matrix.cuh), else in float32 by plain kernels.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "ops/cuda/attention_matrix.cuh"
#include "ops/cuda/ops.h"

namespace hadal::cuda {
namespace {

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
