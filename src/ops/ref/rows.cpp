// Rows moved and changed entry by entry.
#include <algorithm>

#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal::ref {

void round_bf16(const RoundBf16Params& p) {
  for (std::int64_t row = 0; row < p.rows; ++row) {
    for (std::int64_t i = p.begin; i < p.dim; ++i)
      p.x[row * p.dim + i] = bf16_to_f32(f32_to_bf16(p.x[row * p.dim + i]));
  }
}

void scale(const ScaleParams& p) {
  for (std::int64_t i = 0; i < p.count; ++i) p.x[i] *= p.factor;
}

void add_rows(const AddRowsParams& p) {
  for (std::int64_t row = 0; row < p.rows; ++row) {
    for (std::int64_t i = 0; i < p.dim; ++i) p.x[row * p.dim + i] += p.y[row / p.repeat * p.dim + i];
  }
}

void gather_rows(const GatherRowsParams& p) {
  float* out = p.out;
  for (const std::int64_t row : p.rows) out = std::copy_n(p.x + row * p.dim, p.dim, out);
}

void store_rows(const StoreRowsParams& p) {
  for (const StoreRowsParams::Place& place : p.places)
    store_row(p.shape, p.x + place.row * p.shape.dim, place.rows, place.i);
}

}  // namespace hadal::ref
