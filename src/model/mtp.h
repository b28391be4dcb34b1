// Multi-token prediction: one more block that drafts the token after the next (architecture.md section 6).
#pragma once

#include "model/forward.h"
#include "model/parameters.h"

namespace hadal {

// f.tokens: the token that follows each position; streams: [T, n, d] of those positions behind the last main
// block; logits: [T, vocab] of the tokens after f.tokens. Errors: those of moe().
Status mtp(const Forward& f, std::int64_t index, const Weights& weights, const float* streams, float* logits);

}  // namespace hadal
