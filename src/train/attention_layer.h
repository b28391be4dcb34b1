// Attention of one block over whole sequences (architecture.md section 3).
#pragma once

#include <optional>

#include "train/compressor_layer.h"
#include "train/indexer_layer.h"

namespace hadal {

class AttentionLayer {
 public:
  AttentionLayer(const Pass& pass, std::int64_t block, const AttentionWeights& w);

  // x, y: [N, d]; x must stay until backward.
  void forward(Pass& pass, const float* x, float* y);
  // d_x is set.
  void backward(Pass& pass, const float* d_y, float* d_x);
  // The indexer's own loss alone.
  void backward_indexer(Pass& pass);

 private:
  bool compressed() const { return compressor_.has_value(); }

  const AttentionWeights& w_;
  CausalAttentionShape shape_;
  std::optional<CompressorLayer> compressor_;
  std::optional<IndexerLayer> indexer_;
  const float* x_ = nullptr;
  float* qr_raw_ = nullptr;                 // [N, q_lora], before its norm
  float* qr_ = nullptr;                     // [N, q_lora]
  float* q_raw_ = nullptr;                  // [N, H, c], before its norm
  float* q_ = nullptr;                      // [N, H, c], with rope
  float* kv_raw_ = nullptr;                 // [N, c]
  float* kv_ = nullptr;                     // [N, c], with rope
  const float* rows_ = nullptr;             // [B, n_rows, c]
  const std::int32_t* selected_ = nullptr;  // [N, k]
  float* o_ = nullptr;                      // [N, H, c], rotated back
  float* z_ = nullptr;                      // [N, o_groups * o_lora]
};

}  // namespace hadal
