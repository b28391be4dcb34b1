// The kernel table: what the fast backend needs from an instruction set. One generic body (kernels.inc) is
// compiled once per set over that set's 16-lane vector (kernels_<isa>.cpp); the best one that the machine
// has is chosen at start.
//
// Every sum has one fixed order, whatever the number of tokens, rows or threads: a dot product of length K
// runs in two chains of 16 lanes (chain (k / 16) % 2, lane k % 16), the chains are added, then the lanes in
// a fixed tree. Decode and prefill therefore give the same bits.
#pragma once

#include <cstdint>
#include <string_view>

#include <hadal/error.h>

#include "ops/ops.h"

namespace hadal::cpu {

// Rows [row_begin, row_end) of y[yi] (+)= W x[xi] for n_tokens pairs (xi, yi).
struct GemmArgs {
  const Linear* weight = nullptr;  // in % 32 == 0
  std::int64_t row_begin = 0;
  std::int64_t row_end = 0;
  std::int64_t n_tokens = 0;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  // Instead of x where the table has `pack`: the quantised input of packed_rows tokens as `pack` wrote it.
  const std::uint16_t* packed = nullptr;
  std::int64_t packed_rows = 0;
  const std::int32_t* x_index = nullptr;  // [n_tokens]; null: 0, 1, 2, ...
  float* y = nullptr;
  std::int64_t y_stride = 0;
  const std::int32_t* y_index = nullptr;
  bool accumulate = false;
};

// A packed input is BF16, [dim / 512][rows][512] (the last block of K may be narrower), so that the tokens of
// a tile lie together.
constexpr std::int64_t kPackedDepth = 512;

struct Kernels {
  std::string_view isa;
  // Rows that one call of gemm should cover: its unpacked panel then stays in the second-level cache.
  std::int64_t panel_rows;
  void (*gemm)(const GemmArgs& args);
  // Rows [row_begin, row_end) of x [rows, dim], rounded to E4M3 with one power-of-two scale per 1x128, into a
  // packed input; dim % 128 == 0. Null where gemm reads floats only.
  void (*pack)(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
               std::int64_t rows, std::int64_t dim, std::uint16_t* out);
  // Heads [head_begin, head_end), at most 32, of token t.
  void (*sparse_attention)(const SparseAttentionParams& p, std::int64_t t, std::int64_t head_begin,
                           std::int64_t head_end);
  // Index rows [row_begin, row_end) of token t.
  void (*index_scores)(const IndexScoresParams& p, std::int64_t t, std::int64_t row_begin,
                       std::int64_t row_end);
  // out[i] = weight * silu(min(gate[i], limit)) * clamp(up[i], -limit, limit)
  void (*swiglu)(const float* gate, const float* up, float weight, float limit, std::int64_t n, float* out);
};

// The table for `isa` ("avx512bf16", "avx512", "avx2", "scalar"), or the best that this machine runs if it is
// empty.
Result<const Kernels*> choose_kernels(std::string_view isa);

namespace avx512bf16 {
const Kernels& kernels();
bool supported();
}  // namespace avx512bf16
namespace avx512 {
const Kernels& kernels();
bool supported();
}  // namespace avx512
namespace avx2 {
const Kernels& kernels();
bool supported();
}  // namespace avx2
namespace scalar {
const Kernels& kernels();
}  // namespace scalar

}  // namespace hadal::cpu
