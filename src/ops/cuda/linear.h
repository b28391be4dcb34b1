// What the linears of experts share with LinearParams.
#pragma once

#include "ops/cuda/ops.h"

namespace hadal::cuda {

// Whether a weight goes through the matrix units; by its shape alone, never by the number of tokens.
bool multiplies(const Linear& w);

// Rows that will meet weights of `format` or, from row `boundary` on, of another. With fewer source rows than
// rows they are taken again from the first on.
struct PackedRows {
  const float* x = nullptr;  // [source_rows, dim]
  std::int64_t rows = 0, dim = 0, source_rows = 0;
  Linear::Format format = Linear::Format::bf16, format_behind = Linear::Format::bf16;
  std::int64_t boundary = 0;
};
// Where they are as BF16 numbers, one each if they are rounded to E4M3, else three that add up to them: planes
// of [rows, stride].
struct Packed {
  const std::uint16_t* x = nullptr;
  std::int64_t plane = 0, stride = 0;
};
Packed pack(Recorder& r, std::byte* to, const PackedRows& p, bool rounded);
std::size_t packed_bytes(std::int64_t rows, std::int64_t dim, bool rounded);

}  // namespace hadal::cuda
