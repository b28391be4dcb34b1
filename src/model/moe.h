// The mixture of experts of one block (architecture.md section 5).
#pragma once

#include "model/forward.h"
#include "model/parameters.h"

namespace hadal {

// x: [T, d] normed read-out of the streams; out: [T, d].
void moe(const Forward& f, const MoeWeights& w, const float* x, float* out);

}  // namespace hadal
