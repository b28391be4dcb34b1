#include "ops/cpu/cpu_backend.h"

#include <algorithm>

namespace hadal {

CpuBackend::Input CpuBackend::input(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t dim,
                                    Linear::Format format, bool quantise, InputStorage& storage) {
  Input in{.rows = rows};
  const bool rounded = quantise && is_quantised(format);
  if (rounded && kernels_.round_input != nullptr) {
    std::uint16_t* to = grow(storage.rounded, rows * dim);
    pool_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels_.round_input(x, stride, begin, end, rows, dim, to);
    });
    in.rounded = to;
    return in;
  }
  const bool splits = format == Linear::Format::bf16 || format == Linear::Format::fp8;
  if (!rounded && splits && dim % 128 == 0 && kernels_.split_input != nullptr) {
    float* to = grow(storage.floats, rows * dim);
    pool_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels_.split_input(x, stride, begin, end, rows, dim, to);
    });
    in.split = to;
    return in;
  }
  in.x = x;
  in.stride = stride;
  if (!rounded) return in;
  float* floats = grow(storage.floats, rows * dim);
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(x + r * stride, dim, floats + r * dim);
  ref::quantise({QuantiseParams::Format::e4m3_128, rows, dim, dim, floats}, pool_);
  in.x = floats;
  in.stride = dim;
  return in;
}

void CpuBackend::linear(const LinearParams& p) {
  const Linear& w = *p.weight;
  if (w.in % 32 != 0) return ref::linear(p, pool_);  // the kernels' two chains of 16 lanes
  const std::int64_t rows_per_group = w.out / p.groups;
  for (std::int64_t group = 0; group < p.groups; ++group) {
    const Input in =
        input(p.x + group * w.in, p.groups * w.in, p.n_tokens, w.in, w.format, p.quantise_input, input_);
    const std::int64_t first = group * rows_per_group;
    pool_.parallel_for(rows_per_group, kernels_.panel_rows, [&](std::int64_t begin, std::int64_t end) {
      kernels_.gemm({&w, first + begin, first + end, p.n_tokens, in.x, in.stride, in.rounded, in.split,
                     in.rows, nullptr, p.y, w.out, nullptr, false});
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
  if (p.dim % 32 != 0) return ref::sparse_attention(p, pool_);
  constexpr std::int64_t kHeads = 16;
  const std::int64_t chunks = (p.heads + kHeads - 1) / kHeads;
  pool_.parallel_for(p.n_tokens * chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t first = unit % chunks * kHeads;
      kernels_.sparse_attention(p, unit / chunks, first, std::min(first + kHeads, p.heads));
    }
  });
}

}  // namespace hadal
