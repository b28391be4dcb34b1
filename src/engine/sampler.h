// From logits to a token. Greedy, or drawn by temperature, min-p, top-k and top-p with a counter-based
// generator: the draw at a position depends on (seed, position) alone, never on what else was sampled.
//
// Every cut keeps the tokens that are no worse than some last one (by logit, then id), so all of them
// together are one such token, and no set is ever copied or sorted: masses and the draw run over the logits
// in the order of ids. Only top-k and top-p look for that token, among few candidates.
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
  static bool better(const Candidate& a, const Candidate& b);
  float weight(float logit) const;
  double block_mass(std::size_t begin, const Candidate& last) const;
  double mass(const Candidate& last) const;
  void collect_best(std::size_t count);
  Candidate nucleus(double wanted, const Candidate& last);
  std::int32_t draw(double target, const Candidate& last) const;

  // Of the sample being taken:
  std::span<const float> logits_;
  Candidate best_;
  float inverse_temperature_ = 1;
  std::vector<Candidate> candidates_;
};

}  // namespace hadal
