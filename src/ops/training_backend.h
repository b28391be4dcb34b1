// Runs the ops of training (training_ops.h), as Backend runs those of inference: checked once at the door,
// trusted inside. The plain reference and the fast path differ in speed, not in meaning.
#pragma once

#include <memory>
#include <string_view>

#include <hadal/error.h>

#include "base/thread_pool.h"
#include "ops/training_ops.h"

namespace hadal {

class TrainingBackend {
 public:
  TrainingBackend() = default;
  TrainingBackend(const TrainingBackend&) = delete;
  TrainingBackend& operator=(const TrainingBackend&) = delete;
  virtual ~TrainingBackend() = default;

  void run(const EmbedBackwardParams& p);
  void run(const RmsNormBackwardParams& p);
  void run(const CompressBackwardParams& p);
  void run(const CausalAttentionParams& p);
  void run(const CausalAttentionBackwardParams& p);
  void run(const IndexLossParams& p);
  void run(const CausalIndexScoresParams& p);
  void run(const CausalIndexScoresBackwardParams& p);
  void run(const HcPreBackwardParams& p);
  void run(const HcPostBackwardParams& p);
  void run(const HcHeadBackwardParams& p);
  void run(const GateBackwardParams& p);
  void run(const SwigluParams& p);
  void run(const SwigluBackwardParams& p);
  void run(const CrossEntropyParams& p);

 private:
  virtual void embed_backward(const EmbedBackwardParams& p) = 0;
  virtual void rms_norm_backward(const RmsNormBackwardParams& p) = 0;
  virtual void compress_backward(const CompressBackwardParams& p) = 0;
  virtual void causal_attention(const CausalAttentionParams& p) = 0;
  virtual void causal_attention_backward(const CausalAttentionBackwardParams& p) = 0;
  virtual void index_loss(const IndexLossParams& p) = 0;
  virtual void causal_index_scores(const CausalIndexScoresParams& p) = 0;
  virtual void causal_index_scores_backward(const CausalIndexScoresBackwardParams& p) = 0;
  virtual void hc_pre_backward(const HcPreBackwardParams& p) = 0;
  virtual void hc_post_backward(const HcPostBackwardParams& p) = 0;
  virtual void hc_head_backward(const HcHeadBackwardParams& p) = 0;
  virtual void gate_backward(const GateBackwardParams& p) = 0;
  virtual void swiglu(const SwigluParams& p) = 0;
  virtual void swiglu_backward(const SwigluBackwardParams& p) = 0;
  virtual void cross_entropy(const CrossEntropyParams& p) = 0;
};

// "ref" or "cpu", as make_backend. The pool must outlive the backend.
Result<std::unique_ptr<TrainingBackend>> make_training_backend(std::string_view name, std::string_view isa,
                                                               ThreadPool& pool);

}  // namespace hadal
