// The lightning indexer: which compressed rows each token of a CSA layer attends to (report eqs. 13-17).
#pragma once

#include "model/forward.h"
#include "model/parameters.h"

namespace hadal {

// x: [T, d] normed input; qr: [T, q_lora] the normed low-rank query. visible[t] rows exist for token t.
// Returns [T, index_topk], ascending row numbers, -1 behind the last, from the arena; or null where every
// token may attend to all that it sees.
const std::int32_t* select_rows(const Forward& f, std::int64_t block, const IndexerWeights& w, const float* x,
                                const float* qr, std::span<const std::int64_t> visible);

// The choice itself, from finished queries [T, heads, dim] and weights [T, heads].
void choose_rows(const Forward& f, std::int64_t block, const float* q, const float* weights,
                 std::span<const std::int64_t> visible, std::int32_t* selected);
// Whether no token sees more than index_topk rows. Then, unless somebody watches, nothing needs to be scored.
bool nothing_to_choose(const Forward& f, std::span<const std::int64_t> visible);

}  // namespace hadal
