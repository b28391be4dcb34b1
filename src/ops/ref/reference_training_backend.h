// The reference as a backend of training.
#pragma once

#include "ops/ref/ref.h"
#include "ops/training_backend.h"

namespace hadal {

class ReferenceTrainingBackend : public TrainingBackend {
 public:
  explicit ReferenceTrainingBackend(ThreadPool& pool) : pool_(pool) {}

 protected:
  void embed_backward(const EmbedBackwardParams& p) override { ref::embed_backward(p, pool_); }
  void rms_norm_backward(const RmsNormBackwardParams& p) override { ref::rms_norm_backward(p, pool_); }
  void compress_backward(const CompressBackwardParams& p) override { ref::compress_backward(p, pool_); }
  void causal_attention(const CausalAttentionParams& p) override { ref::causal_attention(p, pool_); }
  void causal_attention_backward(const CausalAttentionBackwardParams& p) override {
    ref::causal_attention_backward(p, pool_);
  }
  void index_loss(const IndexLossParams& p) override { ref::index_loss(p, pool_); }
  void causal_index_scores(const CausalIndexScoresParams& p) override { ref::causal_index_scores(p, pool_); }
  void causal_index_scores_backward(const CausalIndexScoresBackwardParams& p) override {
    ref::causal_index_scores_backward(p, pool_);
  }
  void hc_pre_backward(const HcPreBackwardParams& p) override { ref::hc_pre_backward(p, pool_); }
  void hc_post_backward(const HcPostBackwardParams& p) override { ref::hc_post_backward(p, pool_); }
  void hc_head_backward(const HcHeadBackwardParams& p) override { ref::hc_head_backward(p, pool_); }
  void gate_backward(const GateBackwardParams& p) override { ref::gate_backward(p, pool_); }
  void swiglu(const SwigluParams& p) override { ref::swiglu(p, pool_); }
  void swiglu_backward(const SwigluBackwardParams& p) override { ref::swiglu_backward(p, pool_); }
  void cross_entropy(const CrossEntropyParams& p) override { ref::cross_entropy(p, pool_); }

  ThreadPool& pool_;
};

}  // namespace hadal
