// The lightning indexer of a CSA layer (report eqs. 13-17) and its loss. Its inputs are detached: the
// language loss does not reach it (a selection has no gradient), and its own loss does not reach the
// backbone.
#pragma once

#include "train/compressor_layer.h"

namespace hadal {

class IndexerLayer {
 public:
  IndexerLayer(const IndexerWeights& w, std::int64_t ratio, std::int64_t dim)
      : w_(w), compressor_(w.compressor, ratio, dim, true) {}

  // x: [N, d], qr: [N, q_lora]
  void forward(Pass& pass, const float* x, const float* qr);
  // The best rows of every token, [N, index_topk]; null where no sequence has more rows than that.
  const std::int32_t* select(Pass& pass, const CausalAttentionShape& shape);
  // Adds to pass.index_kl. mass: of CausalAttentionParams, for the rows that attention saw (`selected`).
  void loss(Pass& pass, const CausalAttentionShape& shape, const std::int32_t* selected, const float* mass);
  void backward(Pass& pass, const CausalAttentionShape& shape);

 private:
  const IndexerWeights& w_;
  CompressorLayer compressor_;
  const float* x_ = nullptr;
  const float* qr_ = nullptr;
  float* q_ = nullptr;           // [N, heads, dim]
  float* weights_ = nullptr;     // [N, heads]
  const float* rows_ = nullptr;  // [B, n_rows, dim]
  float* d_scores_ = nullptr;    // [N, n_rows]
};

}  // namespace hadal
