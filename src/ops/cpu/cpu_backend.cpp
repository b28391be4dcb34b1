#include "ops/cpu/cpu_backend.h"

#include <algorithm>

namespace hadal {

CpuBackend::Input CpuBackend::input(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t dim,
                                    bool quantised, InputStorage& storage) {
  if (!quantised) return {x, stride, nullptr, rows};
  if (kernels_.pack != nullptr) {
    std::uint16_t* packed = grow(storage.packed, rows * dim);
    pool_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels_.pack(x, stride, begin, end, rows, dim, packed);
    });
    return {nullptr, 0, packed, rows};
  }
  float* floats = grow(storage.floats, rows * dim);
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(x + r * stride, dim, floats + r * dim);
  ref::quantise({QuantiseParams::Format::e4m3_128, rows, dim, dim, floats}, pool_);
  return {floats, dim, nullptr, rows};
}

void CpuBackend::linear(const LinearParams& p) {
  const Linear& w = *p.weight;
  if (w.in % 32 != 0) return ref::linear(p, pool_);  // the kernels' two chains of 16 lanes
  const std::int64_t rows_per_group = w.out / p.groups;
  for (std::int64_t group = 0; group < p.groups; ++group) {
    const Input in = input(p.x + group * w.in, p.groups * w.in, p.n_tokens, w.in,
                           p.quantise_input && w.quantised(), input_);
    const std::int64_t first = group * rows_per_group;
    pool_.parallel_for(rows_per_group, kernels_.panel_rows, [&](std::int64_t begin, std::int64_t end) {
      kernels_.gemm({&w, first + begin, first + end, p.n_tokens, in.x, in.stride, in.packed, in.rows, nullptr,
                     p.y, w.out, nullptr, false});
    });
  }
}

void CpuBackend::index_scores(const IndexScoresParams& p) {
  if (p.dim % 32 != 0) return ref::index_scores(p, pool_);
  constexpr std::int64_t kRows = 256;
  const std::int64_t most = *std::max_element(p.visible.begin(), p.visible.end());
  const std::int64_t chunks = (most + kRows - 1) / kRows;
  pool_.parallel_for(p.n_tokens * chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t t = unit / chunks, first = unit % chunks * kRows;
      kernels_.index_scores(p, t, first, std::min(first + kRows, p.visible[static_cast<std::size_t>(t)]));
    }
  });
}

void CpuBackend::sparse_attention(const SparseAttentionParams& p) {
  if (p.row.dim % 32 != 0 || p.row.rope_dim % 32 != 0) return ref::sparse_attention(p, pool_);
  // Heads that share the unpacking of a row: all that a call takes, or half where threads would have no work.
  const auto units = [&](std::int64_t heads) { return p.n_tokens * ((p.heads + heads - 1) / heads); };
  const std::int64_t heads = units(32) >= pool_.size() ? 32 : 16;
  const std::int64_t chunks = units(heads) / p.n_tokens;
  pool_.parallel_for(units(heads), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t first = unit % chunks * heads;
      kernels_.sparse_attention(p, unit / chunks, first, std::min(first + heads, p.heads));
    }
  });
}

}  // namespace hadal
