// The MTP block (architecture.md section 6): from the streams of token t and the embedding of token t+1, one
// more block predicts token t+2.
#pragma once

#include "train/block_layer.h"
#include "train/readout_layer.h"

namespace hadal {

class MtpLayer {
 public:
  MtpLayer(const Pass& pass, const MtpWeights& w)
      : w_(w),
        block_(pass, pass.config.num_hidden_layers, w.block),
        readout_(w.hc_head, w.norm, pass.weights.weights().head) {}

  // streams: [N, n, d], of the main model, must stay; next, targets, counts: [N], the tokens t+1 and t+2 and
  // whether the latter count.
  ReadoutLayer::Loss forward(Pass& pass, const float* streams, const std::int32_t* next,
                             const std::int32_t* targets, const std::uint8_t* counts, float scale);
  // Adds to d_streams, of the main model's streams, and to the embedding's gradient.
  void backward(Pass& pass, float* d_streams);
  void backward_indexer(Pass& pass) { block_.backward_indexer(pass); }

 private:
  const MtpWeights& w_;
  BlockLayer block_;
  ReadoutLayer readout_;
  const float* streams_ = nullptr;
  std::span<const std::int32_t> next_;
  float* embedded_ = nullptr;  // [N, d]
  float* embedded_normed_ = nullptr;
  float* streams_normed_ = nullptr;  // [N, n, d]
};

}  // namespace hadal
