// The operations that training adds to ops.h: the gradients of its ops, and what a forward over whole
// sequences needs. One Params struct per op; conventions as in ops.h. N = B * T is the number of tokens of B
// whole sequences of T tokens each, from position 0.
//
// d_x is the gradient of the loss with respect to x. Gradients of activations are set, those of parameters
// are added to what is there; both unless the field says otherwise. Every sum over tokens runs in ascending
// order or in an order that depends on the shape alone.
//
// Linear maps have no op here: their three products are matrix products (train/matmul.h). A rotation's
// gradient is the inverse rotation, the Hadamard matrix is its own inverse.
#pragma once

#include <cstdint>
#include <span>

namespace hadal {

// d_embed[tokens[t]] += sum_i d_streams[t][i].
struct EmbedBackwardParams {
  std::span<const std::int32_t> tokens;  // [N]
  std::int64_t copies = 1;
  std::int64_t dim = 0;
  const float* d_streams = nullptr;  // [N, copies, d]
  float* d_embed = nullptr;          // [vocab, d]
};

struct RmsNormBackwardParams {
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  const float* x = nullptr;       // [rows, dim]
  const float* weight = nullptr;  // [dim]; null: none
  float eps = 1e-6F;
  const float* d_out = nullptr;  // [rows, dim]
  float* d_x = nullptr;          // [rows, dim]; may be d_out
  float* d_weight = nullptr;     // [dim]; null: not wanted
};

// CompressParams from the first block of a sequence on: a token's channels belong to one row at most, those
// of unfinished blocks (and, with overlap, the first half of the last block's) to none.
struct CompressBackwardParams {
  std::int64_t n_tokens = 0;  // T of one sequence, at least n_blocks * ratio
  std::int64_t n_blocks = 0;
  std::int64_t ratio = 0;
  std::int64_t dim = 0;
  bool overlap = false;
  const float* values = nullptr;  // [T, o * c']
  const float* gates = nullptr;   // [T, o * c'], position bias added
  const float* d_out = nullptr;   // [n_blocks, c']
  float* d_values = nullptr;      // [T, o * c']
  float* d_gates = nullptr;       // [T, o * c']
};

// Attention of whole sequences, SparseAttentionParams in plain arrays: token t sees its window, tokens
// max(0, t - w + 1) .. t of its sequence, and of the compressed rows the first (t + 1) / m, or those
// selected.
struct CausalAttentionShape {
  std::int64_t sequences = 0;    // B
  std::int64_t length = 0;       // T
  std::int64_t heads = 0;        // H
  std::int64_t dim = 0;          // c
  std::int64_t window_rows = 0;  // w
  std::int64_t ratio = 0;        // m; 0: no compressed rows
  std::int64_t n_rows = 0;       // T / m, compressed rows of a sequence
  std::int64_t k = 0;            // of selected
  bool bf16 = false;             // whether a fast path may round the operands of its products to BF16

  std::int64_t visible(std::int64_t t) const { return ratio == 0 ? 0 : (t + 1) / ratio; }
};
struct CausalAttentionParams {
  CausalAttentionShape shape;
  const float* q = nullptr;                // [N, H, c]
  const float* kv = nullptr;               // [N, c]
  const float* rows = nullptr;             // [B, n_rows, c]
  const std::int32_t* selected = nullptr;  // [N, k], ascending, -1 behind the last; null: all visible
  const float* sink = nullptr;             // [H]
  float* out = nullptr;                    // [N, H, c]; null: not wanted
  // sum over heads of the probabilities of the compressed rows, 0 for rows that t does not see; null: not
  // wanted
  float* mass = nullptr;  // [N, n_rows]
};
struct CausalAttentionBackwardParams {
  CausalAttentionShape shape;
  const float* q = nullptr;
  const float* kv = nullptr;
  const float* rows = nullptr;
  const std::int32_t* selected = nullptr;
  const float* sink = nullptr;
  const float* out = nullptr;    // [N, H, c], of forward
  const float* d_out = nullptr;  // [N, H, c]
  float* d_q = nullptr;          // [N, H, c]
  float* d_kv = nullptr;         // [N, c]
  float* d_rows = nullptr;       // [B, n_rows, c]
  float* d_sink = nullptr;       // [H]
};

// The indexer's loss: KL(p || softmax(scores)) of every query over the compressed rows that it attends to, p
// being `mass` normalised. Queries that see none have no loss.
struct IndexLossParams {
  CausalAttentionShape shape;  // heads and dim are not used
  const std::int32_t* selected = nullptr;
  const float* mass = nullptr;    // [N, n_rows]
  const float* scores = nullptr;  // [N, n_rows]
  float scale = 1;                // of the gradient
  float* loss = nullptr;          // [N]
  float* d_scores = nullptr;      // [N, n_rows]; 0 for rows that t does not see; null: not wanted
};

// IndexScoresParams over whole sequences: scores[t][b] = sum_h weights[t][h] * relu(q[t][h] . rows[b]) for
// the rows that t may see, else 0.
struct CausalIndexScoresParams {
  CausalAttentionShape shape;      // heads and dim are the indexer's
  const float* q = nullptr;        // [N, heads, dim]
  const float* weights = nullptr;  // [N, heads]
  const float* rows = nullptr;     // [B, n_rows, dim]
  float* scores = nullptr;         // [N, n_rows]
};
struct CausalIndexScoresBackwardParams {
  CausalAttentionShape shape;
  const float* q = nullptr;
  const float* weights = nullptr;
  const float* rows = nullptr;
  const float* d_scores = nullptr;  // [N, n_rows]; what t may not see does not count
  float* d_q = nullptr;
  float* d_weights = nullptr;
  float* d_rows = nullptr;
};

// HcPreParams. The gradient reaches the streams on three ways: as what pre weighs, through the norm of the
// mixes, and through fn. The last is a matrix product of the caller's: d_streams += d_mix fn.
struct HcPreBackwardParams {
  std::int64_t n_tokens = 0;
  std::int64_t n = 0;
  std::int64_t dim = 0;
  const float* streams = nullptr;  // [N, n, d]
  const float* mix = nullptr;      // [N, (2+n)n], not yet normalised
  const float* scale = nullptr;    // [3]
  const float* base = nullptr;     // [(2+n)n]
  std::int64_t sinkhorn_iters = 20;
  float norm_eps = 1e-6F;
  float hc_eps = 1e-6F;
  const float* d_out = nullptr;   // [N, d]
  const float* d_post = nullptr;  // [N, n]
  const float* d_comb = nullptr;  // [N, n, n]
  float* d_streams = nullptr;     // [N, n, d]: added to
  float* d_mix = nullptr;         // [N, (2+n)n]
  float* d_scale = nullptr;       // [3]
  float* d_base = nullptr;        // [(2+n)n]
};

struct HcPostBackwardParams {
  std::int64_t n_tokens = 0;
  std::int64_t n = 0;
  std::int64_t dim = 0;
  const float* y = nullptr;        // [N, d]
  const float* post = nullptr;     // [N, n]
  const float* comb = nullptr;     // [N, n, n]
  const float* streams = nullptr;  // [N, n, d], before
  float* d_streams = nullptr;      // [N, n, d]: of the streams after, then of those before
  float* d_y = nullptr;            // [N, d]
  float* d_post = nullptr;         // [N, n]
  float* d_comb = nullptr;         // [N, n, n]
};

struct HcHeadBackwardParams {
  std::int64_t n_tokens = 0;
  std::int64_t n = 0;
  std::int64_t dim = 0;
  const float* streams = nullptr;  // [N, n, d]
  const float* mix = nullptr;      // [N, n]
  const float* scale = nullptr;    // [1]
  const float* base = nullptr;     // [n]
  float norm_eps = 1e-6F;
  float hc_eps = 1e-6F;
  const float* d_out = nullptr;  // [N, d]
  float* d_streams = nullptr;    // [N, n, d]; without the way through fn
  float* d_mix = nullptr;        // [N, n]
  float* d_scale = nullptr;      // [1]
  float* d_base = nullptr;       // [n]
};

// GateParams, and the balance loss, whose gradient with respect to the shares P is given.
struct GateBackwardParams {
  std::int64_t n_tokens = 0;
  std::int64_t n_experts = 0;
  std::int64_t k = 0;
  std::int64_t length = 0;                // T
  const float* logits = nullptr;          // [N, E]
  const float* scores = nullptr;          // [N, E]
  const std::int32_t* indices = nullptr;  // [N, k]
  float routed_scaling_factor = 1;
  const float* d_weights = nullptr;  // [N, k]
  // d loss / d share of each token of the sequence, share[i] = s_i / sum_j s_j; null: no balance loss
  const float* d_shares = nullptr;  // [N / T, E]
  float* d_logits = nullptr;        // [N, E]
};

// The middle of an expert on R rows: out = weight * silu(min(gate, L)) * clamp(up, -L, L).
struct SwigluParams {
  std::int64_t rows = 0;
  std::int64_t inter = 0;
  const float* gate = nullptr;     // [R, I]
  const float* up = nullptr;       // [R, I]
  const float* weights = nullptr;  // [R]; null: 1
  float limit = 10;
  float* out = nullptr;  // [R, I]
};
struct SwigluBackwardParams {
  std::int64_t rows = 0;
  std::int64_t inter = 0;
  const float* gate = nullptr;
  const float* up = nullptr;
  const float* weights = nullptr;
  float limit = 10;
  const float* d_out = nullptr;
  float* d_gate = nullptr;     // may be gate
  float* d_up = nullptr;       // may be up
  float* d_weights = nullptr;  // [R]; null: not wanted
};

// Cross-entropy of each row's target, and in place of the logits their gradient times the row's scale.
struct CrossEntropyParams {
  std::int64_t rows = 0;
  std::int64_t vocab = 0;
  const std::int32_t* targets = nullptr;  // [rows]
  const float* scales = nullptr;          // [rows]; null: the logits stay
  float* logits = nullptr;                // [rows, vocab]
  float* loss = nullptr;                  // [rows]
};

}  // namespace hadal
