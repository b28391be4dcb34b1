// What one token costs: floating-point operations and bytes that must be read, by part of the model
// (docs/bench.md). Counted from the config, 2 operations per multiply-add.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "model/sequence_state.h"

namespace hadal {

struct TokenCost {
  double weight_flops = 0;     // linears, head and router
  double attention_flops = 0;  // core attention over window and compressed rows
  double index_flops = 0;      // q.k of the lightning indexer
  double weight_bytes = 0;     // as stored, scales included; experts that several tokens share count once
  double state_bytes = 0;      // rows that attention and indexer read, as this build keeps them

  double flops() const { return weight_flops + attention_flops + index_flops; }
  double bytes() const { return weight_bytes + state_bytes; }
};

// The mean over `n_tokens` tokens read in one forward behind `context` earlier ones, of which `n_logits` go
// through the head. Each MoE layer is taken to hit the expected number of distinct experts of n_tokens
// independent draws. MTP blocks are left out.
TokenCost token_cost(const Config& config, const StateLayout& layout, std::int64_t context,
                     std::int64_t n_tokens, std::int64_t n_logits);

}  // namespace hadal
