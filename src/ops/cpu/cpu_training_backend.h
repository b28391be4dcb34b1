// The fast backend of training: kernels where the shapes allow, else as the reference. Attention and the
// indexer are matrix products over blocks of queries (cpu_training_attention.cpp,
// cpu_training_indexer.cpp).
#pragma once

#include <vector>

#include "base/buffer.h"
#include "ops/cpu/kernels.h"
#include "ops/ref/reference_training_backend.h"

namespace hadal {

class CpuTrainingBackend final : public ReferenceTrainingBackend {
 public:
  CpuTrainingBackend(const cpu::Kernels& kernels, ThreadPool& pool)
      : ReferenceTrainingBackend(pool), kernels_(kernels) {}

 private:
  void rms_norm_backward(const RmsNormBackwardParams& p) override;
  void compress_backward(const CompressBackwardParams& p) override;
  void causal_attention(const CausalAttentionParams& p) override;
  void causal_attention_backward(const CausalAttentionBackwardParams& p) override;
  void causal_index_scores(const CausalIndexScoresParams& p) override;
  void causal_index_scores_backward(const CausalIndexScoresBackwardParams& p) override;
  void hc_pre_backward(const HcPreBackwardParams& p) override;
  void hc_post_backward(const HcPostBackwardParams& p) override;
  void hc_head_backward(const HcHeadBackwardParams& p) override;
  void swiglu(const SwigluParams& p) override;
  void swiglu_backward(const SwigluBackwardParams& p) override;
  void cross_entropy(const CrossEntropyParams& p) override;

  // At least n floats that nobody else uses now.
  float* scratch(std::int64_t n) {
    if (static_cast<std::int64_t>(scratch_.size()) < n)
      scratch_ = Buffer<float>::uninitialised(static_cast<std::size_t>(n));
    return scratch_.data();
  }

  const cpu::Kernels& kernels_;
  Buffer<float> scratch_;
};

}  // namespace hadal
