// The kernel table: what the fast backend needs from an instruction set. One generic body (kernels.inc) is
// compiled once per set over that set's 16-lane vector (kernels_<isa>.cpp); the best one that the machine
// has is chosen at start.
//
// Every sum has one fixed order, whatever the number of tokens, rows or threads: a dot product of length K
// runs in two chains of 16 lanes (chain (k / 16) % 2, lane k % 16), the chains are added, then the lanes in
// a fixed tree. Decode and prefill therefore give the same bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <hadal/error.h>

#include "ops/cpu/index_blocks.h"
#include "ops/ops.h"
#include "ops/training_ops.h"

namespace hadal::cpu {

struct E4m3Input;
struct Int8Input;
// Rows [row_begin, row_end) of y[yi] (+)= W x[xi] for n_tokens pairs (xi, yi).
struct GemmArgs {
  const Linear* weight = nullptr;  // in % 32 == 0
  std::int64_t row_begin = 0;
  std::int64_t row_end = 0;
  std::int64_t n_tokens = 0;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  // Instead of x, where the table has round_input (or round_input_bf16), split_input and round_input_e4m3:
  // the input of packed_rows tokens as they wrote it.
  const std::uint16_t* rounded = nullptr;
  const float* split = nullptr;
  const E4m3Input* e4m3 = nullptr;
  const Int8Input* int8 = nullptr;
  const std::byte* int8_tiles = nullptr;  // of an FP8 weight (int8_tiles.h)
  std::int64_t packed_rows = 0;
  std::int64_t first_token = 0;
  const std::int32_t* x_index = nullptr;  // [n_tokens]; null: first_token and those after it
  float* y = nullptr;
  std::int64_t y_stride = 0;
  const std::int32_t* y_index = nullptr;
  bool accumulate = false;

  std::int64_t input_row(std::int64_t t) const {
    return x_index != nullptr ? std::int64_t{x_index[t]} : first_token + t;
  }
  float* output(std::int64_t t) const {
    return y + (y_index != nullptr ? std::int64_t{y_index[t]} : first_token + t) * y_stride;
  }
};

// The input of `official` numerics for sets that multiply in float32 (gemm_e4m3.inc).
struct E4m3Input {
  float* values = nullptr;  // rows * dim, packed
  // With FP4 weights also the inputs as integers of three digits:
  float* scales = nullptr;        // [rows, dim / 128]: what a product of them counts
  std::int8_t* digits = nullptr;  // [rows, dim / 128, 3, 128]
  std::int32_t* start = nullptr;  // [rows, dim / 128, 16]: what their sums begin at
};

// The input of `int8` numerics: codes [rows, dim], one scale per 1x32, and what an unsigned weight's offset
// adds. The four arrays are one piece of memory that begins with the codes; an instruction set may lay it out
// in another way.
struct Int8Input {
  std::int8_t* codes = nullptr;       // rows * dim
  float* scales = nullptr;            // rows * dim / 32
  std::int32_t* offset16 = nullptr;   // rows * dim / 32: -16 * the sum of the 32 codes
  std::int32_t* offset128 = nullptr;  // -128 * that sum

  static constexpr std::int64_t bytes(std::int64_t rows, std::int64_t dim) {
    return rows * dim + rows * (dim / 32) * 12;
  }
  static Int8Input in(std::byte* memory, std::int64_t rows, std::int64_t dim) {
    const std::int64_t blocks = rows * (dim / 32);
    auto* scales = reinterpret_cast<float*>(memory + rows * dim);
    auto* offsets = reinterpret_cast<std::int32_t*>(scales + blocks);
    return {reinterpret_cast<std::int8_t*>(memory), scales, offsets, offsets + blocks};
  }
};

// A packed input is [dim / 512][rows][512] (the last block of K may be narrower), so that the tokens of a
// tile lie together, in an order of entries that suits the instruction set.
constexpr std::int64_t kPackedDepth = 512;
// Where entry k of row `row` lies in a packed input of `rows` rows, but for its order inside the block.
inline std::int64_t packed_at(std::int64_t rows, std::int64_t row, std::int64_t k, std::int64_t dim) {
  const std::int64_t block = k / kPackedDepth * kPackedDepth;
  return block * rows + row * std::min(kPackedDepth, dim - block) + (k - block);
}

// What the small ops keep on the stack.
constexpr std::int64_t kMostRopeDim = 256;
constexpr std::int64_t kMostExpertsPerToken = 64;
constexpr std::int64_t kMostSinkhornIterations = 32;

struct Kernels {
  std::string_view isa;
  // Rows that one call of gemm should cover: its unpacked panel then stays in the second-level cache.
  std::int64_t panel_rows;
  std::int64_t int8_panel_rows;  // the same for gemm_int8
  void (*gemm)(const GemmArgs& args);
  // Rows [row_begin, row_end) of x [rows, dim] into a packed input. round_input: rounded to E4M3 with one
  // power-of-two scale per 1x128, as BF16, for FP8 and FP4 weights; dim % 128 == 0. split_input: as they are,
  // for BF16 and FP8 weights; dim % 128 == 0. Null where gemm reads plain floats only.
  void (*round_input)(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t rows, std::int64_t dim, std::uint16_t* out);
  void (*split_input)(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t rows, std::int64_t dim, float* out);
  // Rounded to BF16, for BF16 weights; dim % 128 == 0. Null where gemm does not multiply BF16.
  void (*round_input_bf16)(const float* x, std::int64_t x_stride, std::int64_t row_begin,
                           std::int64_t row_end, std::int64_t rows, std::int64_t dim, std::uint16_t* out);
  // What round_input does, for gemm in float32 with weights of this format; where that is null.
  void (*round_input_e4m3)(const float* x, std::int64_t x_stride, std::int64_t row_begin,
                           std::int64_t row_end, std::int64_t rows, std::int64_t dim, Linear::Format format,
                           const E4m3Input& out);
  // `int8` numerics: the same for out of [rows, dim], dim % 128 == 0, and y = W x for FP4 weights in place
  // and FP8 weights as args.int8_tiles. The sum over K has four chains, blocks of 32 entries b = c, c + 4,
  // ... to chain c, each chain = fma(dot of the codes, scale of x * scale of W, chain), and is (chain 0 +
  // chain 2) + (chain 1 + chain 3).
  void (*round_input_int8)(const float* x, std::int64_t x_stride, std::int64_t row_begin,
                           std::int64_t row_end, std::int64_t rows, std::int64_t dim, const Int8Input& out);
  void (*gemm_int8)(const GemmArgs& args);
  void (*pack_int8_tile)(const Linear& w, std::int64_t tile, std::byte* out);  // int8_tiles.h
  // Heads [head_begin, head_end), at most 32, of token t.
  void (*sparse_attention)(const SparseAttentionParams& p, std::int64_t t, std::int64_t head_begin,
                           std::int64_t head_end);
  // The first n_rows (at most kIndexBlockRows) rows of these tiles into `block`, and a token's scores for all
  // rows of a block.
  void (*index_unpack)(const std::byte* const* tiles, std::int64_t n_rows, IndexRowBlock& block);
  void (*index_scores)(const IndexRowBlock& block, const IndexQuery& q, float* scores);
  // The same for a block in float32: rows [dim, kIndexBlockRows], q [heads, dim], weights [heads].
  void (*index_row_scores)(const float* rows, const float* q, const float* weights, std::int64_t heads,
                           std::int64_t dim, float* scores);
  // The same for consecutive rows of V3.2 (RowFormat::fp8_f32), dim % 128 == 0. index_fp8_query makes `pairs`
  // [dim / 2, heads rounded up to 32] of a token's q; null where q is read as it is.
  void (*index_fp8_query)(const float* q, std::int64_t heads, std::int64_t dim, std::uint32_t* pairs);
  void (*index_fp8_scores)(const std::byte* rows, std::int64_t n_rows, const float* q,
                           const std::uint32_t* pairs, const float* weights, std::int64_t heads,
                           std::int64_t dim, float* scores);
  // out[i] = weight * silu(min(gate[i], limit)) * clamp(up[i], -limit, limit)
  void (*swiglu)(const float* gate, const float* up, float weight, float limit, std::int64_t n, float* out);
  // The small ops: rows, tokens or (for one token or block) channels [begin, end); every width % 16 == 0, but
  // for n_experts.
  void (*rms_norm)(const RmsNormParams& p, std::int64_t row_begin, std::int64_t row_end);
  void (*rope)(const RopeParams& p, std::int64_t token_begin, std::int64_t token_end);
  void (*quantise)(const QuantiseParams& p, std::int64_t row_begin, std::int64_t row_end);
  void (*hadamard)(const HadamardParams& p, std::int64_t row_begin, std::int64_t row_end);
  void (*compress)(const CompressParams& p, std::int64_t block, std::int64_t channel_begin,
                   std::int64_t channel_end);
  void (*hc_pre)(const HcPreParams& p, std::int64_t token_begin, std::int64_t token_end);
  void (*hc_post)(const HcPostParams& p, std::int64_t token, std::int64_t channel_begin,
                  std::int64_t channel_end);
  void (*hc_head)(const HcHeadParams& p, std::int64_t token_begin, std::int64_t token_end);
  void (*gate)(const GateParams& p, std::int64_t token_begin, std::int64_t token_end);
  // The ops of training, likewise. What rows or tokens add to the gradient of a parameter comes out in parts,
  // d_weight [dim] of these rows and parts [tokens][numbers] of each token, for the caller to add up.
  void (*rms_norm_backward)(const RmsNormBackwardParams& p, std::int64_t row_begin, std::int64_t row_end,
                            float* d_weight);
  void (*compress_backward)(const CompressBackwardParams& p, std::int64_t block, std::int64_t channel_begin,
                            std::int64_t channel_end);
  void (*swiglu_backward)(const SwigluBackwardParams& p, std::int64_t row_begin, std::int64_t row_end);
  void (*hc_pre_backward)(const HcPreBackwardParams& p, std::int64_t token_begin, std::int64_t token_end,
                          float* parts);
  void (*hc_post_backward)(const HcPostBackwardParams& p, std::int64_t token_begin, std::int64_t token_end);
  void (*hc_head_backward)(const HcHeadBackwardParams& p, std::int64_t token_begin, std::int64_t token_end,
                           float* parts);
  void (*cross_entropy)(const CrossEntropyParams& p, std::int64_t row_begin, std::int64_t row_end);
  // One head's attention (softmax.inc).
  float (*attention_probabilities)(float* s, const float* seen, std::int64_t n, float scale, float sink);
  void (*attention_score_gradients)(const float* p, float along, float scale, std::int64_t n, float* d_p);
  float (*dot_product)(const float* a, const float* b, std::int64_t n);
};

// The table for `isa` ("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2", "neon_dotprod", "neon",
// "scalar"), or the best that this machine runs if it is empty.
Result<const Kernels*> choose_kernels(std::string_view isa);

namespace avx512bf16 {
const Kernels& kernels();
bool supported();
void index_fp8_query(const float* q, std::int64_t heads, std::int64_t dim, std::uint32_t* pairs);
void index_fp8_scores(const std::byte* rows, std::int64_t n_rows, const float* q, const std::uint32_t* pairs,
                      const float* weights, std::int64_t heads, std::int64_t dim, float* scores);
void sparse_attention(const SparseAttentionParams& p, std::int64_t t, std::int64_t head_begin,
                      std::int64_t head_end);
}  // namespace avx512bf16
namespace avx512vnni {
const Kernels& kernels();
void install(Kernels& table);  // the integer linears, into another set's table
bool supported();
}  // namespace avx512vnni
namespace avx512 {
const Kernels& kernels();
bool supported();
}  // namespace avx512
namespace avx2vnni {
const Kernels& kernels();
bool supported();
}  // namespace avx2vnni
namespace avx2 {
const Kernels& kernels();
void use_int8_kernels(Kernels& table);
bool supported();
}  // namespace avx2
namespace neon_dotprod {
const Kernels& kernels();
bool supported();
}  // namespace neon_dotprod
namespace neon {
const Kernels& kernels();
}  // namespace neon
namespace scalar {
const Kernels& kernels();
}  // namespace scalar

}  // namespace hadal::cpu
