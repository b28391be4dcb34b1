// What stands around the sublayers of a block: mHC and the router.
#include "base/check.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/ops.h"

namespace hadal::cuda {
namespace {

constexpr int kMostStreams = 16;

__device__ inline float sigmoid(float x) {
  return 1.0F / (1.0F + expf(-x));
}

// 1 / sqrt(mean(v^2) + eps) over the block's threads.
__device__ inline float inverse_rms(const float* v, std::int64_t n, float eps, double* scratch) {
  double squares = 0;
  const std::int64_t fours = n % 4 == 0 ? n / 4 : 0;
#pragma unroll 8
  for (std::int64_t i = threadIdx.x; i < fours; i += blockDim.x) {
    const float4 x = reinterpret_cast<const float4*>(v)[i];
    squares += (double{x.x} * double{x.x} + double{x.y} * double{x.y}) +
               (double{x.z} * double{x.z} + double{x.w} * double{x.w});
  }
  for (std::int64_t i = 4 * fours + threadIdx.x; i < n; i += blockDim.x)
    squares += double{v[i]} * double{v[i]};
  squares = block_sum(squares, scratch);
  return 1.0F / sqrtf(static_cast<float>(squares / static_cast<double>(n)) + eps);
}

// Streams lie `dim` apart; a thread has the same entry of all. `out` may be shared memory.
__device__ inline void read_streams(const float* streams, const float* pre, int n, std::int64_t dim,
                                    float* out) {
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < dim; i += blockDim.x) {
    float sum = 0;
    for (int s = 0; s < n; ++s) sum += pre[s] * streams[s * dim + i];
    out[i] = sum;
  }
}

// The sum of the entries `first`, `first + step`, ... of a matrix that lies one entry in a lane.
__device__ inline float line_sum(float entry, int first, int step, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += __shfl_sync(kAll, entry, first + i * step);
  return sum;
}

struct HcPreArgs {
  const float *streams, *mix, *scale, *base;
  float *pre, *post, *comb, *out;
  float* inverse;       // [T]
  const float* weight;  // [d], of the norm behind; null: none
  std::int64_t dim;
  int n, sinkhorn_iters;
  float norm_eps, hc_eps;
  float out_eps;  // of the norm behind
  int normalises;
};

// What the sublayer waits for; a block per token.
__global__ void hc_read_kernel(HcPreArgs p) {
  extern __shared__ float row[];  // [d], if there is a norm behind
  __shared__ double scratch[32];
  __shared__ float pre[kMostStreams];
  const std::int64_t t = blockIdx.x;
  const int n = p.n, tid = static_cast<int>(threadIdx.x);
  const float* streams = p.streams + t * n * p.dim;
  const float inverse = inverse_rms(streams, n * p.dim, p.norm_eps, scratch);
  if (tid < n) {
    pre[tid] = sigmoid(p.mix[t * (2 + n) * n + tid] * inverse * p.scale[0] + p.base[tid]) + p.hc_eps;
    p.pre[t * n + tid] = pre[tid];
  }
  if (tid == 0) p.inverse[t] = inverse;
  __syncthreads();
  float* out = p.out + t * p.dim;
  read_streams(streams, pre, n, p.dim, p.normalises != 0 ? row : out);
  if (p.normalises == 0) return;
  double squares = 0;  // of the entries that the thread itself has written
  for (std::int64_t i = tid; i < p.dim; i += blockDim.x) squares += double{row[i]} * double{row[i]};
  squares = block_sum(squares, scratch);
  const float factor = 1.0F / sqrtf(static_cast<float>(squares / static_cast<double>(p.dim)) + p.out_eps);
  for (std::int64_t i = tid; i < p.dim; i += blockDim.x) {
    const float normalised = row[i] * factor;
    out[i] = p.weight != nullptr ? p.weight[i] * normalised : normalised;
  }
}

// What only hc_post waits for; a block per token. With at most five streams the mixing matrix lies in the
// lanes of a warp.
__global__ void hc_mix_kernel(HcPreArgs p) {
  __shared__ float matrix[kMostStreams * kMostStreams];
  const std::int64_t t = blockIdx.x;
  const int n = p.n, tid = static_cast<int>(threadIdx.x);
  const float inverse = p.inverse[t];
  const float* mix = p.mix + t * (2 + n) * n;
  if (tid < n) p.post[t * n + tid] = 2 * sigmoid(mix[n + tid] * inverse * p.scale[1] + p.base[n + tid]);
  for (int i = tid; i < n * n; i += static_cast<int>(blockDim.x))
    matrix[i] = mix[2 * n + i] * inverse * p.scale[2] + p.base[2 * n + i];
  __syncthreads();
  float* comb = p.comb + t * n * n;
  if (n * n <= kWarp) {
    const int at = tid < n * n ? tid : 0, row = at / n * n, column = at % n;
    float c = matrix[at], maximum = matrix[row];
    for (int i = 1; i < n; ++i) maximum = fmaxf(maximum, matrix[row + i]);
    c = expf(c - maximum);
    c = c / line_sum(c, row, 1, n) + p.hc_eps;
    c /= line_sum(c, column, n, n) + p.hc_eps;
    for (int iteration = 1; iteration < p.sinkhorn_iters; ++iteration) {
      c /= line_sum(c, row, 1, n) + p.hc_eps;
      c /= line_sum(c, column, n, n) + p.hc_eps;
    }
    if (tid < n * n) comb[tid] = c;
    return;
  }
  if (tid != 0) return;
  for (int j = 0; j < n; ++j) {
    float* line = matrix + j * n;
    float maximum = line[0], sum = 0;
    for (int i = 1; i < n; ++i) maximum = fmaxf(maximum, line[i]);
    for (int i = 0; i < n; ++i) sum += line[i] = expf(line[i] - maximum);
    for (int i = 0; i < n; ++i) line[i] = line[i] / sum + p.hc_eps;
  }
  const auto normalise = [&](int line_step, int entry_step) {
    for (int line = 0; line < n; ++line) {
      float sum = 0;
      for (int i = 0; i < n; ++i) sum += matrix[line * line_step + i * entry_step];
      for (int i = 0; i < n; ++i) matrix[line * line_step + i * entry_step] /= sum + p.hc_eps;
    }
  };
  normalise(1, n);
  for (int iteration = 1; iteration < p.sinkhorn_iters; ++iteration) {
    normalise(n, 1);
    normalise(1, n);
  }
  for (int i = 0; i < n * n; ++i) comb[i] = matrix[i];
}

struct HcPostArgs {
  const float *y, *post, *comb;
  float* streams;
  std::int64_t dim, n;
};
template <int kStreams>
__global__ void hc_post_kernel(HcPostArgs p) {
  const std::int64_t t = blockIdx.x, at = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (at >= p.dim) return;
  const int n = kStreams == kMostStreams ? static_cast<int>(p.n) : kStreams;
  const float *post = p.post + t * n, *comb = p.comb + t * n * n;
  float* streams = p.streams + t * n * p.dim + at;
  float before[kStreams];
#pragma unroll
  for (int j = 0; j < kStreams; ++j) before[j] = j < n ? streams[j * p.dim] : 0.0F;
  const float y = p.y[t * p.dim + at];
#pragma unroll
  for (int i = 0; i < kStreams; ++i) {
    if (i >= n) break;
    float mixed = 0;
#pragma unroll
    for (int j = 0; j < kStreams; ++j) {
      if (j < n) mixed += comb[j * n + i] * before[j];
    }
    streams[i * p.dim] = post[i] * y + mixed;
  }
}

struct HcHeadArgs {
  const float *streams, *mix, *scale, *base;
  float* out;
  std::int64_t dim, n;
  float norm_eps, hc_eps;
};
__global__ void hc_head_kernel(HcHeadArgs p) {
  __shared__ double scratch[32];
  __shared__ float pre[kMostStreams];
  const std::int64_t t = blockIdx.x;
  const auto n = static_cast<int>(p.n);
  const float* streams = p.streams + t * n * p.dim;
  const float inverse = inverse_rms(streams, n * p.dim, p.norm_eps, scratch);
  if (threadIdx.x < n)
    pre[threadIdx.x] =
        sigmoid(p.mix[t * n + threadIdx.x] * inverse * p.scale[0] + p.base[threadIdx.x]) + p.hc_eps;
  __syncthreads();
  read_streams(streams, pre, n, p.dim, p.out + t * p.dim);
}

struct GateArgs {
  const float *logits, *bias;
  const std::int32_t *table, *tokens;
  float* scores;
  std::int32_t* indices;
  float* weights;
  int n_experts, k;
  float factor;
  int unused;
};
// A block per token: k times the best of those that are left.
__global__ void gate_kernel(GateArgs p) {
  extern __shared__ float shared[];  // [E] scores, [E] what chooses
  __shared__ float best_score[32];
  __shared__ int best_id[32];
  float *scores = shared, *choosing = shared + p.n_experts;
  const std::int64_t t = blockIdx.x;
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), lane = tid % kWarp;
  for (int e = tid; e < p.n_experts; e += threads) {
    const float x = p.logits[t * p.n_experts + e];
    scores[e] = sqrtf(x > 20 ? x : log1pf(expf(x)));
    p.scores[t * p.n_experts + e] = scores[e];
    if (p.bias != nullptr) choosing[e] = scores[e] + p.bias[e];
  }
  __syncthreads();
  std::int32_t* indices = p.indices + t * p.k;
  if (p.table != nullptr) {
    if (tid < p.k) indices[tid] = p.table[std::int64_t{p.tokens[t]} * p.k + tid];
  } else {
    const float nothing = -INFINITY;
    for (int i = 0; i < p.k; ++i) {
      float score = nothing;
      int id = p.n_experts;
      const auto take = [&](float other, int other_id) {
        if (other > score || (other == score && other_id < id)) {
          score = other;
          id = other_id;
        }
      };
      for (int e = tid; e < p.n_experts; e += threads) take(choosing[e], e);
      for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(kAll, score, distance);
        take(other, __shfl_xor_sync(kAll, id, distance));
      }
      if (lane == 0) {
        best_score[tid / kWarp] = score;
        best_id[tid / kWarp] = id;
      }
      __syncthreads();
      score = nothing;
      id = p.n_experts;
      for (int w = 0; w < threads / kWarp; ++w) take(best_score[w], best_id[w]);
      // Where nothing is left that compares, the first that was not taken, in order of ids.
      if (tid == 0) {
        if (id == p.n_experts) id = i;
        indices[i] = id;
        choosing[id] = nothing;
      }
      __syncthreads();
    }
  }
  __syncthreads();
  if (tid == 0) {
    float sum = 0;
    for (int i = 0; i < p.k; ++i) sum += scores[indices[i]];
    for (int i = 0; i < p.k; ++i) p.weights[t * p.k + i] = scores[indices[i]] / sum * p.factor;
  }
}

unsigned count(std::int64_t n) {
  return static_cast<unsigned>(n);
}

}  // namespace

void hc_pre(Recorder& r, const HcPreParams& p, const RmsNormParams* norm) {
  HADAL_CHECK(p.n <= kMostStreams);
  auto* inverse =
      reinterpret_cast<float*>(r.next_scratch(static_cast<std::size_t>(p.n_tokens) * sizeof(float)));
  const HcPreArgs args{p.streams,
                       p.mix,
                       p.scale,
                       p.base,
                       p.pre,
                       p.post,
                       p.comb,
                       p.out,
                       inverse,
                       norm != nullptr ? norm->weight : nullptr,
                       p.dim,
                       static_cast<int>(p.n),
                       static_cast<int>(p.sinkhorn_iters),
                       p.norm_eps,
                       p.hc_eps,
                       norm != nullptr ? norm->eps : 0,
                       norm != nullptr ? 1 : 0};
  const Range mix = range(p.mix, p.n_tokens * (2 + p.n) * p.n), inverse_range = range(inverse, p.n_tokens);
  r.launch(hc_read_kernel, dim3(count(p.n_tokens)), 1024,
           norm != nullptr ? static_cast<std::size_t>(p.dim) * sizeof(float) : 0, args,
           {range(p.streams, p.n_tokens * p.n * p.dim), mix},
           {range(p.pre, p.n_tokens * p.n), range(p.out, p.n_tokens * p.dim), inverse_range});
  r.launch(hc_mix_kernel, dim3(count(p.n_tokens)), 32, 0, args, {mix, inverse_range},
           {range(p.post, p.n_tokens * p.n), range(p.comb, p.n_tokens * p.n * p.n)});
}

void hc_post(Recorder& r, const HcPostParams& p) {
  HADAL_CHECK(p.n <= kMostStreams);
  const Range streams = range(p.streams, p.n_tokens * p.n * p.dim);
  r.launch(p.n == 4 ? hc_post_kernel<4> : hc_post_kernel<kMostStreams>,
           dim3(count(p.n_tokens), count((p.dim + 127) / 128)), 128, 0,
           HcPostArgs{p.y, p.post, p.comb, p.streams, p.dim, p.n},
           {range(p.y, p.n_tokens * p.dim), range(p.post, p.n_tokens * p.n),
            range(p.comb, p.n_tokens * p.n * p.n), streams},
           {streams});
}

void hc_head(Recorder& r, const HcHeadParams& p) {
  HADAL_CHECK(p.n <= kMostStreams);
  r.launch(hc_head_kernel, dim3(count(p.n_tokens)), 1024, 0,
           HcHeadArgs{p.streams, p.mix, p.scale, p.base, p.out, p.dim, p.n, p.norm_eps, p.hc_eps},
           {range(p.streams, p.n_tokens * p.n * p.dim), range(p.mix, p.n_tokens * p.n)},
           {range(p.out, p.n_tokens * p.dim)});
}

void gate(Recorder& r, const GateParams& p) {
  const std::int32_t* tokens = p.table != nullptr ? r.stage(p.tokens) : nullptr;
  r.launch(gate_kernel, dim3(count(p.n_tokens)), 256,
           static_cast<std::size_t>(2 * p.n_experts) * sizeof(float),
           GateArgs{p.logits, p.bias, p.table, tokens, p.scores, p.indices, p.weights,
                    static_cast<int>(p.n_experts), static_cast<int>(p.k), p.routed_scaling_factor, 0},
           {range(p.logits, p.n_tokens * p.n_experts)},
           {range(p.scores, p.n_tokens * p.n_experts), range(p.indices, p.n_tokens * p.k),
            range(p.weights, p.n_tokens * p.k)});
}

}  // namespace hadal::cuda
