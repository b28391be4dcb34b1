// From the streams to the loss: hc_head, the last norm, the head and the cross-entropy. Logits exist for a
// few hundred tokens at a time: their gradient takes their place, and what becomes of it is computed before
// the next tokens' turn.
#pragma once

#include "train/pass.h"

namespace hadal {

class ReadoutLayer {
 public:
  ReadoutLayer(const HcHeadWeights& hc_head, const Vector& norm, const Linear& head)
      : hc_head_(hc_head), norm_(norm), head_(head) {}

  struct Loss {
    double mean = 0;
    std::int64_t n_tokens = 0;
  };
  // targets, counts: [N]; the mean over the tokens whose target counts, whose gradient is scaled by `scale`.
  // streams: [N, n, d], must stay until backward.
  Loss forward(Pass& pass, const float* streams, const std::int32_t* targets, const std::uint8_t* counts,
               float scale);
  // d_streams is set.
  void backward(Pass& pass, float* d_streams);
  void logits(Pass& pass, const float* streams, float* out);

 private:
  const float* normed(Pass& pass, const float* streams);

  const HcHeadWeights& hc_head_;
  const Vector& norm_;
  const Linear& head_;
  const float* streams_ = nullptr;
  float* mix_ = nullptr;   // [N, n]
  float* read_ = nullptr;  // [N, d], before the norm
  float* d_h_ = nullptr;   // [N, d], of the normed
};

}  // namespace hadal
