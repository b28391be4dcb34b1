// From the tokens of a forward to compressed rows in the pages of their sequences (report section 2.3).
#pragma once

#include "model/forward.h"
#include "model/parameters.h"

namespace hadal {

struct CompressorPlan {
  const CompressorWeights& weights;
  TailLayout BlockStateLayout::*tail;
  RowsLayout BlockStateLayout::*rows;
  bool rotate;           // the indexer's: Hadamard and FP4 instead of FP8
  const char* tap_name;  // "attn.kv_compressed"
};

// x: [T, d], the normed input of the attention. Emits the row of every block that the batch completes, and
// leaves the tokens of unfinished blocks in the tails.
void compress_tokens(const Forward& f, std::int64_t block, const CompressorPlan& plan, const float* x);

}  // namespace hadal
