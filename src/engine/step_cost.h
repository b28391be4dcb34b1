// What a step of the scheduler costs, learnt from those that ran, and how many prompt tokens one may take
// while others wait for their next token.
//
// A step that decodes for n sequences takes about a + b n seconds: the weights are read once, a part of the
// work comes with every sequence. The line is fitted by least squares to the steps without a prompt, where
// the weight of a step halves every kHalfLife such steps, since depths change. What a step takes longer than
// its line is put down to its prompt tokens: c each, the mean of the recent ones. c falls as chunks grow, so
// it is known only near the chunks that were timed: the next may be a quarter larger than one that was used
// up.
#pragma once

#include <cstdint>

namespace hadal {

class StepCost {
 public:
  // A step that took `seconds`, decoded for `decoding` sequences and read `prompt_tokens`.
  void add(std::int64_t decoding, std::int64_t prompt_tokens, double seconds);

  // Whether the line has to be measured (again) by a step without prompt tokens.
  bool wants_decode_step() const { return weight_ == 0 || steps_since_decode_ >= kStepsBetweenProbes; }
  // Of a step that decodes for n sequences and reads no prompt; 0 before any was seen.
  double decode_seconds(std::int64_t n) const;
  // The most prompt tokens, at least kLeast, with which a step that decodes for `decoding` sequences stays
  // within `seconds`; what the next step may take.
  std::int64_t grant(std::int64_t decoding, double seconds);

 private:
  static constexpr double kHalfLife = 16;
  static constexpr int kStepsBetweenProbes = 32;
  static constexpr std::int64_t kLeast = 4;
  static constexpr std::int64_t kFirst = 32;  // before any chunk was timed

  // Of the weighted steps that only decoded: their number n and seconds s.
  double weight_ = 0, n_ = 0, nn_ = 0, s_ = 0, ns_ = 0;
  int steps_since_decode_ = 0;
  double prompt_seconds_ = 0;      // a prompt token; 0: not measured
  std::int64_t granted_ = kFirst;  // what the step being timed could have taken
  std::int64_t most_ = kFirst;     // that the next may
};

}  // namespace hadal
