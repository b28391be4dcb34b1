// The ops between the matrices: each spreads its rows, or the channels of a single token, over the threads
// and calls the kernel. A token of them is a few microseconds of work, so pieces are cut no smaller than what
// is worth handing to another thread.
#include <algorithm>

#include "ops/cpu/cpu_backend.h"

namespace hadal {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kStreams = 4;  // hc_mult of every DeepSeek-V4
// Numbers that a thread should get at once: about a microsecond at the speed of the second-level cache.
constexpr std::int64_t kPiece = std::int64_t{1} << 14;

std::int64_t rows_of_piece(std::int64_t dim) {
  return std::max<std::int64_t>(1, kPiece / dim);
}

}  // namespace

void CpuBackend::rms_norm(const RmsNormParams& p) {
  if (p.dim % kLanes != 0) return ref::rms_norm(p, pool_);
  pool_.parallel_for(p.rows, rows_of_piece(p.dim),
                     [&](std::int64_t begin, std::int64_t end) { kernels_.rms_norm(p, begin, end); });
}

void CpuBackend::rope(const RopeParams& p) {
  const bool adjacent = p.pairs == RopeParams::Pairs::last_adjacent;
  if (!adjacent || p.rope_dim % kLanes != 0 || p.rope_dim > cpu::kMostRopeDim) return ref::rope(p, pool_);
  pool_.parallel_for(p.n_tokens, rows_of_piece(p.heads * p.rope_dim),
                     [&](std::int64_t begin, std::int64_t end) { kernels_.rope(p, begin, end); });
}

void CpuBackend::quantise(const QuantiseParams& p) {
  pool_.parallel_for(p.rows, rows_of_piece(p.dim),
                     [&](std::int64_t begin, std::int64_t end) { kernels_.quantise(p, begin, end); });
}

void CpuBackend::hadamard(const HadamardParams& p) {
  if (p.dim % kLanes != 0) return ref::hadamard(p, pool_);
  pool_.parallel_for(p.rows, rows_of_piece(p.dim),
                     [&](std::int64_t begin, std::int64_t end) { kernels_.hadamard(p, begin, end); });
}

void CpuBackend::compress(const CompressParams& p) {
  if (p.dim % kLanes != 0) return ref::compress(p, pool_);
  constexpr std::int64_t kChannels = 64;
  const std::int64_t chunks = (p.dim + kChannels - 1) / kChannels;
  pool_.parallel_for(p.n_blocks * chunks, rows_of_piece(2 * p.ratio * kChannels),
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t unit = begin; unit < end; ++unit) {
                         const std::int64_t first = unit % chunks * kChannels;
                         kernels_.compress(p, unit / chunks, first, std::min(first + kChannels, p.dim));
                       }
                     });
}

void CpuBackend::hc_pre(const HcPreParams& p) {
  if (p.n != kStreams || p.dim % kLanes != 0) return ref::hc_pre(p, pool_);
  pool_.parallel_for(p.n_tokens, rows_of_piece(p.n * p.dim),
                     [&](std::int64_t begin, std::int64_t end) { kernels_.hc_pre(p, begin, end); });
}

void CpuBackend::hc_post(const HcPostParams& p) {
  if (p.n != kStreams || p.dim % kLanes != 0) return ref::hc_post(p, pool_);
  constexpr std::int64_t kChannels = 1024;
  const std::int64_t chunks = (p.dim + kChannels - 1) / kChannels;
  pool_.parallel_for(p.n_tokens * chunks, rows_of_piece(2 * kStreams * kChannels),
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t unit = begin; unit < end; ++unit) {
                         const std::int64_t first = unit % chunks * kChannels;
                         kernels_.hc_post(p, unit / chunks, first, std::min(first + kChannels, p.dim));
                       }
                     });
}

void CpuBackend::hc_head(const HcHeadParams& p) {
  if (p.n != kStreams || p.dim % kLanes != 0) return ref::hc_head(p, pool_);
  pool_.parallel_for(p.n_tokens, rows_of_piece(p.n * p.dim),
                     [&](std::int64_t begin, std::int64_t end) { kernels_.hc_head(p, begin, end); });
}

void CpuBackend::gate(const GateParams& p) {
  if (p.k > cpu::kMostExpertsPerToken || p.sigmoid || p.n_group > 1) return ref::gate(p, pool_);
  pool_.parallel_for(p.n_tokens, rows_of_piece(8 * p.n_experts),
                     [&](std::int64_t begin, std::int64_t end) { kernels_.gate(p, begin, end); });
}

}  // namespace hadal
