// One transformer block: attention and experts, each between hc_pre and hc_post of its hyper-connection
// (report section 2.2); and the read-out of the streams before a head.
#pragma once

#include "model/forward.h"
#include "model/parameters.h"

namespace hadal {

// streams: [T, n, d], in place. Appends to the state of every segment. Errors: those of moe().
Status run_block(const Forward& f, std::int64_t block, const BlockWeights& w, float* streams);

// streams: [T, n, d] -> h: [T, d]
void read_head(const Forward& f, const HcHeadWeights& w, const float* streams, std::int64_t n_tokens,
               float* h);

}  // namespace hadal
