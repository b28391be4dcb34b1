#include "ops/cpu/cpu_backend.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cpu/int8_tiles.h"
#include "tensor/codec.h"

namespace hadal {
namespace {
// Tokens of one call where a linear is split by them: its weights are read once for all of these.
constexpr std::int64_t kSplitTokens = 48;
}  // namespace

CpuBackend::Input CpuBackend::input(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t dim,
                                    Linear::Format format, InputRounding rounding, InputStorage& storage) {
  Input in;
  in.rows = rows;
  if (rounding == InputRounding::int8 && is_quantised(format)) {
    in.int8 = cpu::Int8Input::in(grow(storage.int8, cpu::Int8Input::bytes(rows, dim)), rows, dim);
    pool_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels_.round_input_int8(x, stride, begin, end, rows, dim, in.int8);
    });
    return in;
  }
  if (rounding == InputRounding::bf16 && format == Linear::Format::bf16 && dim % 128 == 0 &&
      kernels_.round_input_bf16 != nullptr) {
    std::uint16_t* to = grow(storage.rounded, rows * dim);
    pool_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels_.round_input_bf16(x, stride, begin, end, rows, dim, to);
    });
    in.rounded = to;
    return in;
  }
  if (rounding == InputRounding::bf16) {
    float* to = grow(storage.floats, rows * dim);
    pool_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t k = 0; k < dim; ++k)
          to[row * dim + k] = bf16_to_f32(f32_to_bf16(x[row * stride + k]));
      }
    });
    in.x = to;
    in.stride = dim;
    return in;
  }
  const bool rounded = rounding == InputRounding::e4m3 && is_quantised(format);
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
  if (rounded) {
    const std::int64_t n = rows * dim;
    float* floats = grow(storage.floats, n + n / 128);
    in.e4m3 = {floats, floats + n, grow(storage.codes, 3 * n), grow(storage.offsets, n / 8)};
    pool_.parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels_.round_input_e4m3(x, stride, begin, end, rows, dim, format, in.e4m3);
    });
    return in;
  }
  in.x = x;
  in.stride = stride;
  return in;
}

std::int64_t CpuBackend::prepared_bytes(const Linear& w, InputRounding rounding) const {
  if (rounding != InputRounding::int8 || w.format != Linear::Format::fp8) return 0;
  return cpu::Int8Tiles::tiles(w.out) * cpu::Int8Tiles::bytes(w.in);
}

std::int64_t CpuBackend::prepare(const Linear& w, InputRounding rounding) {
  const std::int64_t bytes = prepared_bytes(w, rounding);
  if (bytes == 0) return 0;
  const std::int64_t tiles = cpu::Int8Tiles::tiles(w.out), tile_bytes = cpu::Int8Tiles::bytes(w.in);
  Buffer<std::byte>& packed = int8_tiles_[w.weight];
  packed = Buffer<std::byte>::uninitialised(static_cast<std::size_t>(bytes));
  pool_.parallel_for(tiles, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t tile = begin; tile < end; ++tile)
      kernels_.pack_int8_tile(w, tile, packed.data() + tile * tile_bytes);
  });
  return bytes;
}

void CpuBackend::multiply(const Linear& w, std::int64_t begin, std::int64_t end, const Tokens& tokens,
                          const Input& in, float* y, bool accumulate) const {
  cpu::GemmArgs args{.weight = &w,
                     .row_begin = begin,
                     .row_end = end,
                     .n_tokens = tokens.count,
                     .x = in.x,
                     .x_stride = in.stride,
                     .rounded = in.rounded,
                     .split = in.split,
                     .e4m3 = in.e4m3.values != nullptr ? &in.e4m3 : nullptr,
                     .int8 = nullptr,
                     .int8_tiles = nullptr,
                     .packed_rows = in.rows,
                     .first_token = tokens.first,
                     .x_index = tokens.x_index,
                     .y = y,
                     .y_stride = w.out,
                     .y_index = tokens.y_index,
                     .accumulate = accumulate};
  if (in.int8.codes == nullptr) return kernels_.gemm(args);
  args.int8 = &in.int8;
  if (w.format == Linear::Format::fp8) {
    const auto tiles = int8_tiles_.find(w.weight);
    HADAL_CHECK(tiles != int8_tiles_.end());  // prepare() comes before the first linear
    args.int8_tiles = tiles->second.data();
  }
  kernels_.gemm_int8(args);
}

void CpuBackend::linear(const LinearParams& p) {
  const Linear& w = *p.weight;
  if (w.in % 32 != 0) return ref::linear(p, pool_);  // the kernels' two chains of 16 lanes
  const std::int64_t rows_per_group = w.out / p.groups;
  for (std::int64_t group = 0; group < p.groups; ++group) {
    const Input in =
        input(p.x + group * w.in, p.groups * w.in, p.n_tokens, w.in, w.format, p.rounding, input_);
    const std::int64_t first = group * rows_per_group;
    const std::int64_t at_once = panel_rows(w.format, p.rounding);
    // A few rows that many tokens meet (mixers of mHC, routers) are split by tokens.
    if (rows_per_group < at_once * pool_.size() && p.n_tokens >= kSplitTokens * pool_.size()) {
      pool_.parallel_for(p.n_tokens, kSplitTokens, [&](std::int64_t begin, std::int64_t end) {
        multiply(w, first, first + rows_per_group, {end - begin, begin}, in, p.y, false);
      });
      continue;
    }
    pool_.parallel_for(rows_per_group, at_once, [&](std::int64_t begin, std::int64_t end) {
      multiply(w, first + begin, first + end, {p.n_tokens}, in, p.y, false);
    });
  }
}

void CpuBackend::sparse_attention(const SparseAttentionParams& p) {
  if (p.row.dim % 16 != 0 || p.row.rope_dim % 16 != 0 || p.values() % 16 != 0)
    return ref::sparse_attention(p, pool_);
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
