// From logits to a token. Greedy, or drawn by temperature, min-p, top-k and top-p with a counter-based
// generator: the draw at a position depends on (seed, position) alone, never on what else was sampled.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <hadal/engine.h>

namespace hadal {

struct Sample {
  std::int32_t token = 0;
  double logprob = 0;
  std::vector<TokenLogprob> top;  // the most likely tokens, best first
};

class Sampler {
 public:
  // logits: [vocab]. `position` numbers the draw. `n_top`: how many of the most likely tokens to report.
  // Equal logits are ordered by id, so the result is a pure function of its arguments. NaN counts as -inf.
  Sample sample(std::span<const float> logits, const SamplingOptions& options, std::uint64_t position,
                std::int64_t n_top = 0);

 private:
  struct Candidate {
    float logit = 0;
    std::int32_t token = 0;
  };
  std::vector<Candidate> candidates_;
};

}  // namespace hadal
