#include "ops/cpu/cpu_training_backend.h"

#include <algorithm>

namespace hadal {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kStreams = 4;  // hc_mult of every DeepSeek-V4
// Rows whose part of a parameter's gradient is one sum. The parts are added in ascending order, so that the
// result depends on the number of rows alone.
constexpr std::int64_t kPartRows = 64;
constexpr std::int64_t kTokens = 16;  // that a thread gets at once, where each is some microseconds

// to[i] += sum over rows, ascending, of parts[row][i]
void add_parts(const float* parts, std::int64_t rows, std::int64_t stride, std::int64_t n, float* to) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < n; ++i) to[i] += parts[r * stride + i];
  }
}

}  // namespace

void CpuTrainingBackend::rms_norm_backward(const RmsNormBackwardParams& p) {
  if (p.dim % kLanes != 0) return ref::rms_norm_backward(p, pool_);
  const std::int64_t n_parts = (p.rows + kPartRows - 1) / kPartRows;
  float* parts = p.d_weight != nullptr ? scratch(n_parts * p.dim) : nullptr;
  pool_.parallel_for(n_parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      kernels_.rms_norm_backward(p, part * kPartRows, std::min((part + 1) * kPartRows, p.rows),
                                 parts != nullptr ? parts + part * p.dim : nullptr);
    }
  });
  if (parts != nullptr) add_parts(parts, n_parts, p.dim, p.dim, p.d_weight);
}

void CpuTrainingBackend::compress_backward(const CompressBackwardParams& p) {
  if (p.dim % kLanes != 0) return ref::compress_backward(p, pool_);
  // What belongs to no row has no gradient: the tokens behind the last block, and with overlap the halves
  // that the next block would have read.
  const std::int64_t wide = p.overlap ? 2 * p.dim : p.dim, done = p.n_blocks * p.ratio;
  for (float* d : {p.d_values, p.d_gates}) {
    std::fill(d + done * wide, d + p.n_tokens * wide, 0.0F);
    if (!p.overlap || p.n_blocks == 0) continue;
    for (std::int64_t t = done - p.ratio; t < done; ++t) std::fill_n(d + t * wide, p.dim, 0.0F);
  }
  constexpr std::int64_t kChannels = 64;
  const std::int64_t chunks = (p.dim + kChannels - 1) / kChannels;
  pool_.parallel_for(p.n_blocks * chunks, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t first = unit % chunks * kChannels;
      kernels_.compress_backward(p, unit / chunks, first, std::min(first + kChannels, p.dim));
    }
  });
}

void CpuTrainingBackend::hc_pre_backward(const HcPreBackwardParams& p) {
  if (p.n != kStreams || p.dim % kLanes != 0 || p.sinkhorn_iters > cpu::kMostSinkhornIterations)
    return ref::hc_pre_backward(p, pool_);
  constexpr std::int64_t kMixes = (2 + kStreams) * kStreams, kParts = kMixes + 3;
  float* parts = scratch(p.n_tokens * kParts);
  pool_.parallel_for(p.n_tokens, kTokens, [&](std::int64_t begin, std::int64_t end) {
    kernels_.hc_pre_backward(p, begin, end, parts);
  });
  add_parts(parts, p.n_tokens, kParts, kMixes, p.d_base);
  add_parts(parts + kMixes, p.n_tokens, kParts, 3, p.d_scale);
}

void CpuTrainingBackend::hc_post_backward(const HcPostBackwardParams& p) {
  if (p.n != kStreams || p.dim % kLanes != 0) return ref::hc_post_backward(p, pool_);
  pool_.parallel_for(p.n_tokens, kTokens,
                     [&](std::int64_t begin, std::int64_t end) { kernels_.hc_post_backward(p, begin, end); });
}

void CpuTrainingBackend::hc_head_backward(const HcHeadBackwardParams& p) {
  if (p.n != kStreams || p.dim % kLanes != 0) return ref::hc_head_backward(p, pool_);
  constexpr std::int64_t kParts = kStreams + 1;
  float* parts = scratch(p.n_tokens * kParts);
  pool_.parallel_for(p.n_tokens, kTokens, [&](std::int64_t begin, std::int64_t end) {
    kernels_.hc_head_backward(p, begin, end, parts);
  });
  add_parts(parts, p.n_tokens, kParts, kStreams, p.d_base);
  add_parts(parts + kStreams, p.n_tokens, kParts, 1, p.d_scale);
}

void CpuTrainingBackend::swiglu(const SwigluParams& p) {
  pool_.parallel_for(p.rows, kTokens, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      kernels_.swiglu(p.gate + r * p.inter, p.up + r * p.inter, p.weights != nullptr ? p.weights[r] : 1.0F,
                      p.limit, p.inter, p.out + r * p.inter);
    }
  });
}

void CpuTrainingBackend::swiglu_backward(const SwigluBackwardParams& p) {
  if (p.inter % kLanes != 0) return ref::swiglu_backward(p, pool_);
  pool_.parallel_for(p.rows, kTokens,
                     [&](std::int64_t begin, std::int64_t end) { kernels_.swiglu_backward(p, begin, end); });
}

void CpuTrainingBackend::cross_entropy(const CrossEntropyParams& p) {
  if (p.vocab % kLanes != 0) return ref::cross_entropy(p, pool_);
  pool_.parallel_for(p.rows, kTokens,
                     [&](std::int64_t begin, std::int64_t end) { kernels_.cross_entropy(p, begin, end); });
}

}  // namespace hadal
