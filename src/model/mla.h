// DeepSeek-V3.2's attention, the baseline that V4 is measured against: multi-head latent attention with the
// up-projections absorbed, over the rows that DeepSeek Sparse Attention's indexer picks.
//
// Of every token one row is kept, c = rmsnorm(kv_a x) (kv_lora_rank wide) and a rotated key of
// qk_rope_head_dim that all heads share. A head's key is W_UK c beside that key, its value W_UV c; W_UK and
// W_UV are kv_b_proj's rows. Because (W_UK c) . q = c . (W_UK^T q) and sum_j p_j W_UV c_j = W_UV (sum_j p_j
// c_j), W_UK^T (absorbed_q) goes to the query and W_UV (absorbed_v) behind the sum: the attention runs on the
// rows as they are kept, one for all heads, just as V4's does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "model/forward.h"

namespace hadal {

// x: [T, d], normed; out: [T, d]. Appends to the state of every segment.
void mla(const Forward& f, std::int64_t block, const MlaWeights& w, const float* x, float* out);

// Makes absorbed_q and absorbed_v of kv_b_proj; the memory that holds them is returned. FP8 weights become
// BF16, which loses nothing; others keep their format.
Buffer<std::byte> absorb(const V32Config& config, MlaWeights& w);

}  // namespace hadal
