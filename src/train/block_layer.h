// One block: attention and experts, each between hc_pre and hc_post (architecture.md section 2).
#pragma once

#include "train/attention_layer.h"
#include "train/moe_layer.h"

namespace hadal {

// What surrounds a sublayer: x = rmsnorm(hc_pre(streams)), and streams' = hc_post(y, streams).
class HyperConnection {
 public:
  HyperConnection(const HyperConnectionWeights& w, const Vector& norm) : w_(w), norm_(norm) {}

  // streams: [N, n, d], must stay until backward; the result, [N, d], does.
  const float* pre(Pass& pass, const float* streams);
  // y: [N, d], must stay; gives the streams after.
  const float* post(Pass& pass, const float* y);
  // d_streams: of the streams after, then what reaches those before through the mixing alone. d_y is set.
  void post_backward(Pass& pass, float* d_streams, float* d_y);
  // d_x: of the result of pre; overwritten. Adds the rest to d_streams.
  void pre_backward(Pass& pass, float* d_x, float* d_streams);

 private:
  const HyperConnectionWeights& w_;
  const Vector& norm_;
  const float* streams_ = nullptr;
  const float* y_ = nullptr;
  float* mix_ = nullptr;   // [N, (2+n)n]
  float* post_ = nullptr;  // [N, n]
  float* comb_ = nullptr;  // [N, n, n]
  float* read_ = nullptr;  // [N, d], before the norm
  float* d_post_ = nullptr;
  float* d_comb_ = nullptr;
};

class BlockLayer {
 public:
  BlockLayer(const Pass& pass, std::int64_t block, const BlockWeights& w)
      : hc_attn_(w.hc_attn, w.attn_norm),
        hc_ffn_(w.hc_ffn, w.ffn_norm),
        attention_(pass, block, w.attn),
        moe_(block, w.ffn) {}

  const float* forward(Pass& pass, const float* streams);
  // In place: of the streams after, then of those before.
  void backward(Pass& pass, float* d_streams);
  void backward_indexer(Pass& pass) { attention_.backward_indexer(pass); }

 private:
  HyperConnection hc_attn_, hc_ffn_;
  AttentionLayer attention_;
  MoeLayer moe_;
};

}  // namespace hadal
