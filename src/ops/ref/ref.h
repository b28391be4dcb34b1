// The plain reference: what each op means, in loops that can be read beside the report. Sums run in float64
// and are rounded to float32 once, so that a fast path may be held to it whatever its order of summation.
// Tokens (or rows) are independent and spread over the pool; nothing else is parallel here.
#pragma once

#include "base/thread_pool.h"
#include "ops/ops.h"
#include "ops/training_ops.h"

namespace hadal::ref {

void embed(const EmbedParams& p, ThreadPool& pool);
void rms_norm(const RmsNormParams& p, ThreadPool& pool);
void layer_norm(const LayerNormParams& p, ThreadPool& pool);
void linear(const LinearParams& p, ThreadPool& pool);
void angles(const AnglesParams& p);
void rope(const RopeParams& p, ThreadPool& pool);
void quantise(const QuantiseParams& p, ThreadPool& pool);
void round_bf16(const RoundBf16Params& p);
void scale(const ScaleParams& p);
void add_rows(const AddRowsParams& p);
void gather_rows(const GatherRowsParams& p);
void hadamard(const HadamardParams& p, ThreadPool& pool);
void compress(const CompressParams& p, ThreadPool& pool);
void store_rows(const StoreRowsParams& p);
void index_scores(const IndexScoresParams& p, ThreadPool& pool);
void index_select(const IndexSelectParams& p, ThreadPool& pool);
void sparse_attention(const SparseAttentionParams& p, ThreadPool& pool);
void hc_pre(const HcPreParams& p, ThreadPool& pool);
void hc_post(const HcPostParams& p, ThreadPool& pool);
void hc_head(const HcHeadParams& p, ThreadPool& pool);
void gate(const GateParams& p, ThreadPool& pool);
void experts(const ExpertsParams& p, ThreadPool& pool);

// Training (training_ops.h).
void embed_backward(const EmbedBackwardParams& p, ThreadPool& pool);
void rms_norm_backward(const RmsNormBackwardParams& p, ThreadPool& pool);
void compress_backward(const CompressBackwardParams& p, ThreadPool& pool);
void causal_attention(const CausalAttentionParams& p, ThreadPool& pool);
void causal_attention_backward(const CausalAttentionBackwardParams& p, ThreadPool& pool);
void index_loss(const IndexLossParams& p, ThreadPool& pool);
void causal_index_scores(const CausalIndexScoresParams& p, ThreadPool& pool);
void causal_index_scores_backward(const CausalIndexScoresBackwardParams& p, ThreadPool& pool);
void hc_pre_backward(const HcPreBackwardParams& p, ThreadPool& pool);
void hc_post_backward(const HcPostBackwardParams& p, ThreadPool& pool);
void hc_head_backward(const HcHeadBackwardParams& p, ThreadPool& pool);
void gate_backward(const GateBackwardParams& p, ThreadPool& pool);
void swiglu(const SwigluParams& p, ThreadPool& pool);
void swiglu_backward(const SwigluBackwardParams& p, ThreadPool& pool);
void cross_entropy(const CrossEntropyParams& p, ThreadPool& pool);

// The choice of IndexSelectParams from scores [n]; indices: [k].
void top_k(const float* scores, std::int64_t n, std::int64_t k, std::int32_t* indices);

// Row `row` of W as float32 [in]; exact for every format.
void dequantise_row(const Linear& w, std::int64_t row, float* out);

// One block of a quantiser: rounds x[0..n) to codes with a common power-of-two scale and back, in place.
// Returns the E8M0 byte of the scale. Codes, one per byte, are written where `codes` is not null.
std::uint8_t quantise_e4m3_block(float* x, std::int64_t n, std::uint8_t* codes = nullptr);
std::uint8_t quantise_e2m1_block(float* x, std::int64_t n, std::uint8_t* codes = nullptr);

// `int8` numerics. 32 entries as codes in [-127, 127] of the returned scale, amax / 127.
float quantise_int8_block(const float* x, std::int8_t* codes);
// The same for FP8 weights, with a BF16 scale that covers them: amax / 127, rounded up.
float int8_block(const float* v, std::int8_t* codes);
// A block none of whose values is larger is zeros of scale 0: it is nothing beside the smallest input that
// E4M3 would keep, and 127 / amax stays finite.
inline constexpr float kNothing = 1e-30F;
// A row of FP4 or FP8 weights as codes [in] and scales [in/32]: FP4 exactly (twice its value), FP8 rounded
// again.
void int8_row(const Linear& w, std::int64_t row, std::int8_t* codes, float* scales);
void linear_int8(const LinearParams& p, ThreadPool& pool);

// The mixing weights of one token from its normalised mixes [(2+n)n]; see HcPreParams.
void hc_split_sinkhorn(const float* mix, const float* scale, const float* base, std::int64_t n,
                       std::int64_t iterations, float eps, float* pre, float* post, float* comb);

}  // namespace hadal::ref
