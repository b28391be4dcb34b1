// The queries of a batch as the FP4 indexer kernels read them.
#pragma once

#include "base/buffer.h"
#include "ops/cpu/index_blocks.h"
#include "ops/ops.h"

namespace hadal::cpu {

class IndexQueries {
 public:
  // Room for n tokens; what was there is gone. Allocates only to grow.
  void reserve(std::int64_t n_tokens, std::int64_t heads, std::int64_t dim);
  // Fills in token t from q [heads, dim], numbers as the E2M1 quantiser leaves them, and weights [heads].
  // Different tokens may be set at the same time.
  void set(std::int64_t t, const float* q, const float* weights, std::int64_t heads);
  const IndexQuery& operator[](std::int64_t t) const { return views_[static_cast<std::size_t>(t)]; }

 private:
  std::int64_t heads_ = 0, dim_ = 0;  // heads padded
  Buffer<IndexQuery> views_;
  Buffer<std::uint8_t> plain_group_;
  Buffer<std::int8_t> codes_;
  Buffer<std::int32_t> start_, block_start_;
  Buffer<float> scaled_weight_, weight_, block_scale_;
};

}  // namespace hadal::cpu
