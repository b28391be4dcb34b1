// The operations of DeepSeek-V4 at the model's own granularity: one Params struct per op. Every array is
// float32 (or int32), row-major and contiguous unless a stride says otherwise; T is the number of tokens of
// the ragged batch. Pointers point into the backend's memory (Backend::memory), spans into this process: what
// a span holds is read before run() returns. ops/ref has the plain definition of each op, and tests hold
// every backend to it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/linear.h"
#include "ops/row_format.h"

namespace hadal {

// streams[t][i] = embed[tokens[t]] for each of the n residual streams.
struct EmbedParams {
  std::span<const std::int32_t> tokens;  // [T], each in [0, vocab)
  const Linear* embed = nullptr;         // [vocab, d]
  std::int64_t copies = 1;               // n = hc_mult
  float* out = nullptr;                  // [T, n, d]
};

// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight. In place when out == x.
struct RmsNormParams {
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  const float* x = nullptr;       // [rows, dim]
  const float* weight = nullptr;  // [dim]; null: none
  float eps = 1e-6F;
  float* out = nullptr;  // [rows, dim]
};

// out[r] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * weight + bias (V3.2's indexer keys). In place
// when out == x.
struct LayerNormParams {
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  const float* x = nullptr;       // [rows, dim]
  const float* weight = nullptr;  // [dim]
  const float* bias = nullptr;    // [dim]
  float eps = 1e-6F;
  float* out = nullptr;  // [rows, dim]
};

// y[t] = W x[t]. With groups > 1 W is [groups * out_g, in], x is [T, groups * in] and row r of W meets the
// r / out_g-th part of x (the grouped output projection).
struct LinearParams {
  std::int64_t n_tokens = 0;
  const float* x = nullptr;  // [T, groups * in]
  const Linear* weight = nullptr;
  std::int64_t groups = 1;
  InputRounding rounding = InputRounding::none;  // in front of a quantised weight
  float* y = nullptr;                            // [T, out]
};

// cos and sin of position * frequency, the product in float32 as the official code computes it.
struct AnglesParams {
  std::span<const std::int64_t> positions;  // [T]
  std::span<const float> frequencies;       // [r/2]
  float* cos = nullptr;                     // [T, r/2]
  float* sin = nullptr;                     // [T, r/2]
};

// Rotates rope_dim entries of every head by the angle of its token: the last ones in pairs (2i, 2i+1) or, in
// V3.2's indexer, the first ones in pairs (i, i + r/2).
struct RopeParams {
  enum class Pairs : std::uint8_t { last_adjacent, first_halves };

  std::int64_t n_tokens = 0;
  std::int64_t heads = 1;
  std::int64_t dim = 0;        // of a head
  std::int64_t rope_dim = 0;   // r
  const float* cos = nullptr;  // [T, r/2]
  const float* sin = nullptr;  // [T, r/2]
  bool inverse = false;        // by minus the angle
  float* x = nullptr;          // [T, heads, dim], in place
  Pairs pairs = Pairs::last_adjacent;
};

// Rounds x to what the cache stores and back: E4M3 in blocks of 64 over the first `quantised_dim` entries of
// each row (KV rows), or E2M1 in blocks of 32 over all of them (indexer); power-of-two scales.
struct QuantiseParams {
  enum class Format : std::uint8_t { e4m3_64, e2m1_32, e4m3_128 };
  Format format = Format::e4m3_64;
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  std::int64_t quantised_dim = 0;
  float* x = nullptr;  // [rows, dim], in place
};

// Entries [begin, dim) of each row rounded to BF16 and back.
struct RoundBf16Params {
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  std::int64_t begin = 0;
  float* x = nullptr;  // [rows, dim], in place
};

// x *= factor.
struct ScaleParams {
  std::int64_t count = 0;
  float factor = 1;
  float* x = nullptr;  // [count], in place
};

// x[r] += y[r / repeat].
struct AddRowsParams {
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  std::int64_t repeat = 1;
  const float* y = nullptr;  // [rows / repeat, dim]
  float* x = nullptr;        // [rows, dim], in place
};

// out[i] = x[rows[i]].
struct GatherRowsParams {
  std::span<const std::int64_t> rows;
  std::int64_t dim = 0;
  const float* x = nullptr;  // [.., dim]
  float* out = nullptr;      // [rows, dim]
};

// Each row times the Hadamard matrix in Sylvester order, scaled by dim^-1/2.
struct HadamardParams {
  std::int64_t rows = 0;
  std::int64_t dim = 0;  // a power of two
  float* x = nullptr;    // [rows, dim], in place
};

// Pools blocks of `ratio` tokens into one row each, channel by channel: a softmax over the block's gates
// weighs the block's values. With overlap the first half of the channels belongs to the row of the next
// block, so that a row sees 2 * ratio tokens; the very first block has no predecessor.
struct CompressParams {
  std::int64_t n_blocks = 0;
  std::int64_t ratio = 0;  // m
  std::int64_t dim = 0;    // c'
  bool overlap = false;
  bool has_previous = false;      // the arrays start with the ratio tokens of the block before the first
  const float* values = nullptr;  // [(has_previous + n_blocks) * m, o * c'], o = overlap ? 2 : 1
  const float* gates = nullptr;   // same shape, position bias added
  float* out = nullptr;           // [n_blocks, c']
};

// What one sequence brings to a compressor: consecutive tokens, and the tail that its state has kept of those
// before them (TailLayout), which is read and then replaced by the tail behind the new ones.
struct CompressSegment {
  std::int64_t begin = 0;   // row of the batch of its first token
  std::int64_t count = 0;   // tokens
  std::int64_t start = 0;   // position of the first
  float* values = nullptr;  // [kept, o * c']
  float* gates = nullptr;   // [kept, o * c'], position bias added

  // Tokens in the tail of a sequence of `length`: those of the unfinished block and, with overlap, the block
  // before it.
  static std::int64_t kept(std::int64_t length, std::int64_t ratio, bool overlap) {
    return length % ratio + (overlap && length >= ratio ? ratio : 0);
  }
};

// Adds the position bias to the gates and pools every block that the batch completes, as CompressParams says.
struct CompressTokensParams {
  std::int64_t ratio = 0;  // m
  std::int64_t dim = 0;    // c'
  bool overlap = false;
  const float* values = nullptr;              // [T, o * c']
  const float* gates = nullptr;               // [T, o * c']
  const float* bias = nullptr;                // [m, o * c'], by place in the block
  std::span<const CompressSegment> segments;  // all of the batch, in order
  float* out = nullptr;                       // [blocks of all segments, c']
};

// Puts rows in their places in the state, in its format (store_row).
struct StoreRowsParams {
  struct Place {
    std::int64_t row = 0;       // of x
    std::byte* rows = nullptr;  // in the backend's memory
    std::int64_t i = 0;         // becomes the i-th of these rows
  };
  RowShape shape;
  const float* x = nullptr;  // [.., dim]
  std::span<const Place> places;
};

// scores[t][b] = sum_h weights[t][h] * relu(q[t][h] . rows[b]) for b < visible[t]; the rest is untouched.
//
// Over FP4 rows q is numbers that the E2M1 quantiser leaves unchanged (QuantiseParams), every product within
// a block of 32 and their sum are exact, and the rest has one order in float32: the blocks are added in
// ascending order, relu (of a NaN: 0), then the heads join in ascending order by fma(weight, dot, score). The
// bits of a score are therefore the same everywhere, and so is the choice between two close ones.
struct IndexScoresParams {
  std::int64_t n_tokens = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  const float* q = nullptr;               // [T, heads, dim]
  const float* weights = nullptr;         // [T, heads]
  PagedRows rows;                         // f32, fp4_tiles or fp8_f32
  std::span<const std::int64_t> visible;  // [T]
  std::int64_t stride = 0;                // of scores
  float* scores = nullptr;                // [T, stride]
};

// The k rows of the best scores among the first visible[t], ascending; all of them when there are at most k.
// The order of preference is total: the larger score (-0 is 0, and a NaN minus infinity), then the lower row.
struct IndexSelectParams {
  std::int64_t n_tokens = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  std::int64_t k = 0;
  const float* q = nullptr;        // [T, heads, dim]
  const float* weights = nullptr;  // [T, heads]
  PagedRows rows;
  std::span<const std::int64_t> visible;  // [T]
  std::int32_t* indices = nullptr;        // [T, k], -1 behind the last
};

// What one sequence brings into a batch: consecutive tokens, and the rows that its state has kept.
struct AttentionSegment {
  std::int64_t begin = 0;             // row of the batch of its first token
  std::int64_t count = 0;             // tokens
  std::int64_t start = 0;             // position of the first
  const std::byte* window = nullptr;  // rows of the positions before `start`: position p is row p % w
  PagedRows compressed;
};

// Attention of every head of a token over its rows (AttentionRows), which are keys and values at once, with a
// sink in the denominator: the last w positions up to its own, then its compressed rows. V3.2 has no window
// and no sink, and of a row the first value_dim entries are the value.
struct SparseAttentionParams {
  std::int64_t n_tokens = 0;
  std::int64_t heads = 0;
  RowShape row;                                // of windows and compressed rows
  const float* q = nullptr;                    // [T, heads, dim]
  const float* kv = nullptr;                   // [T, dim]: the rows of the batch's own tokens
  std::span<const AttentionSegment> segments;  // all of the batch, in order
  std::int64_t window_rows = 0;                // w
  std::span<const std::int64_t> visible;       // [T] compressed rows that a token sees; empty: none
  std::int64_t k = 0;
  const std::int32_t* selected = nullptr;  // [T, k]: min(k, visible) of them, ascending; null: all
  const float* sink = nullptr;             // [heads]; null: none
  float* out = nullptr;                    // [T, heads, value_dim]
  // Queries, rows and the exponentials of scores rounded to BF16, sums in float32 (`int8` numerics).
  bool bf16 = false;
  std::int64_t value_dim = 0;  // 0: dim
  float scale = 0;             // of the scores; 0: dim^-1/2

  std::int64_t values() const { return value_dim > 0 ? value_dim : row.dim; }
  float score_scale() const { return scale > 0 ? scale : 1.0F / std::sqrt(static_cast<float>(row.dim)); }
};

// mHC before a sublayer: the mixes of a token (its normalised streams through fn) become the weights that
// read the streams (pre), that write the sublayer's output back (post) and that mix the streams (comb).
struct HcPreParams {
  std::int64_t n_tokens = 0;
  std::int64_t n = 0;  // hc_mult
  std::int64_t dim = 0;
  const float* streams = nullptr;  // [T, n, d]
  const float* mix = nullptr;      // [T, (2+n)n]: fn @ vec(streams), not yet normalised
  const float* scale = nullptr;    // [3]
  const float* base = nullptr;     // [(2+n)n]
  std::int64_t sinkhorn_iters = 20;
  float norm_eps = 1e-6F;
  float hc_eps = 1e-6F;
  float* pre = nullptr;   // [T, n]
  float* post = nullptr;  // [T, n]
  float* comb = nullptr;  // [T, n, n]: [from][to]
  float* out = nullptr;   // [T, d]: sum_i pre[i] * streams[i]
};

// streams[i] = post[i] * y + sum_j comb[j][i] * streams[j], in place.
struct HcPostParams {
  std::int64_t n_tokens = 0;
  std::int64_t n = 0;
  std::int64_t dim = 0;
  const float* y = nullptr;     // [T, d]
  const float* post = nullptr;  // [T, n]
  const float* comb = nullptr;  // [T, n, n]
  float* streams = nullptr;     // [T, n, d]
};

// The streams read out once more before the head: pre = sigmoid(mix * scale + base) + eps, no Sinkhorn.
struct HcHeadParams {
  std::int64_t n_tokens = 0;
  std::int64_t n = 0;
  std::int64_t dim = 0;
  const float* streams = nullptr;  // [T, n, d]
  const float* mix = nullptr;      // [T, n]
  const float* scale = nullptr;    // [1]
  const float* base = nullptr;     // [n]
  float norm_eps = 1e-6F;
  float hc_eps = 1e-6F;
  float* out = nullptr;  // [T, d]
};

// Affinities, and for each token the experts it goes to with their weights. Experts are chosen by table
// (hash routing) or as the k best of affinity + bias, best first, lowest id first among equals.
struct GateParams {
  std::int64_t n_tokens = 0;
  std::int64_t n_experts = 0;
  std::int64_t k = 0;
  const float* logits = nullptr;         // [T, E]: gate @ x
  const float* bias = nullptr;           // [E]; null with a table
  const std::int32_t* table = nullptr;   // tid2eid [vocab, k]; null with a bias
  std::span<const std::int32_t> tokens;  // [T], used with a table
  float routed_scaling_factor = 1;
  float* scores = nullptr;          // [T, E]: sqrt(softplus(logits)), or their sigmoids
  std::int32_t* indices = nullptr;  // [T, k]
  float* weights = nullptr;         // [T, k]
  // V3.2: sigmoids instead; and of n_group equal groups of experts only the topk_group best ones are chosen
  // from, a group being as good as the sum of its two best affinities + bias (lowest group first among
  // equals).
  bool sigmoid = false;
  std::int64_t n_group = 1;
  std::int64_t topk_group = 1;
};

// out[t] = sum over the token's experts, by ascending id, of
//   w2 @ (weight * silu(min(w1 @ x, L)) * clamp(w3 @ x, -L, L)), and last the shared expert with weight 1.
// With k = 0 there is the shared one alone: V3.2's dense layers.
struct ExpertsParams {
  std::int64_t n_tokens = 0;
  std::int64_t dim = 0;    // d
  std::int64_t inter = 0;  // I
  std::int64_t k = 0;
  const float* x = nullptr;               // [T, d]
  const std::int32_t* indices = nullptr;  // [T, k]
  const float* weights = nullptr;         // [T, k]
  std::span<const Expert> experts;        // [E]; those without weights are left to another call
  const Expert* shared = nullptr;         // null: left to another call
  float swiglu_limit = 10;
  InputRounding rounding = InputRounding::none;  // also in front of w2
  float* out = nullptr;                          // [T, d]
  // Adds to `out` instead of setting it. Calls with ascending ranges of the experts, the shared one in the
  // last, give bit for bit what one call with all of them gives.
  bool accumulate = false;
};

}  // namespace hadal
