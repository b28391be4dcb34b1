// A compressor over whole sequences: one row for every complete block of m tokens (report 2.3.1, 2.3.2).
#pragma once

#include "train/pass.h"

namespace hadal {

class CompressorLayer {
 public:
  // dim: c'. `rotate`: the indexer's rows go through the Hadamard matrix (and FP4, if training is aware of
  // it).
  CompressorLayer(const CompressorWeights& w, std::int64_t ratio, std::int64_t dim, bool rotate)
      : w_(w), ratio_(ratio), dim_(dim), rotate_(rotate) {}

  std::int64_t rows(const Pass& pass) const { return pass.batch.length / ratio_; }  // of a sequence

  // The two products of x [N, d] join `products`; finish() comes after these have run and gives the rows,
  // [B, T / m, c'].
  void start(Pass& pass, Products& products, const float* x);
  const float* finish(Pass& pass);
  // d_rows is overwritten. The gradients of x join d_x unless it is null (a detached input).
  void backward(Pass& pass, float* d_rows, float* d_x);

 private:
  bool overlap() const { return ratio_ == 4; }
  std::int64_t wide() const { return overlap() ? 2 * dim_ : dim_; }
  void rope(const Pass& pass, bool inverse, float* rows) const;

  const CompressorWeights& w_;
  std::int64_t ratio_, dim_;
  bool rotate_;
  const float* x_ = nullptr;  // [N, d]
  float* values_ = nullptr;   // [N, o * c']
  float* gates_ = nullptr;    // [N, o * c'], with the position bias
  float* pooled_ = nullptr;   // [B, T / m, c'], before the norm
};

}  // namespace hadal
