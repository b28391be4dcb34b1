// Attention of one block: sliding window, and with a compressor CSA or HCA (report section 2.3).
#pragma once

#include "model/forward.h"
#include "model/parameters.h"

namespace hadal {

// x: [T, d], the normed read-out of the streams; out: [T, d]. Appends to the state of every segment.
void attention(const Forward& f, std::int64_t block, const AttentionWeights& w, const float* x, float* out);

}  // namespace hadal
