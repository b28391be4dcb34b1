// What the linears of experts share with LinearParams.
#pragma once

#include "ops/cuda/fragments.cuh"
#include "ops/cuda/ops.h"

namespace hadal::cuda {

// Whether a weight goes through the matrix units; by its shape alone, never by the number of tokens.
bool multiplies(const Linear& w);

// Rows [rows, dim] as BF16 numbers laid out for weights of `format`, in mma_tiles.cuh or mma_rows.cuh: one
// part each if they are rounded to E4M3, else three. What was packed before and not written since is taken
// again.
PackedInput pack(Recorder& r, const float* x, std::int64_t rows, std::int64_t dim, Linear::Format format,
                 bool rounded, bool in_tiles);

// Of the H100 and the H200.
constexpr std::int64_t kMultiprocessors = 132;

}  // namespace hadal::cuda
