// The mixture of experts of one block (architecture.md section 5).
#pragma once

#include "model/forward.h"
#include "model/parameters.h"

namespace hadal {

// x: [T, d] normed read-out of the streams; out: [T, d]. Errors, only where experts are on disk: io,
// cancelled.
Status moe(const Forward& f, std::int64_t block, const MoeWeights& w, const float* x, float* out);

// Where experts are on disk: reads ahead those of the hash-routed layers, which the tokens alone decide.
void prefetch_hash_routed(const Forward& f);

// The one wide expert of V3.2's first layers. x, out: [T, d].
void dense_ffn(const Forward& f, const Expert& w, const float* x, float* out);

}  // namespace hadal
