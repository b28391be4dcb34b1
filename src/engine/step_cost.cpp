#include "engine/step_cost.h"

#include <algorithm>
#include <cmath>

namespace hadal {

void StepCost::add(std::int64_t decoding, std::int64_t prompt_tokens, double seconds) {
  if (decoding == 0) return;  // whole chunks: their cost a token is another
  if (prompt_tokens == 0) {
    const double fade = std::exp2(-1 / kHalfLife);
    const auto n = static_cast<double>(decoding);
    weight_ = fade * weight_ + 1;
    n_ = fade * n_ + n;
    nn_ = fade * nn_ + n * n;
    s_ = fade * s_ + seconds;
    ns_ = fade * ns_ + n * seconds;
    steps_since_decode_ = 0;
    return;
  }
  ++steps_since_decode_;
  if (prompt_tokens >= granted_) most_ = prompt_tokens + prompt_tokens / 4 + 1;
  if (weight_ == 0) return;
  const double each = std::max(seconds - decode_seconds(decoding), 0.0) / static_cast<double>(prompt_tokens);
  prompt_seconds_ = prompt_seconds_ == 0 ? each : 0.7 * prompt_seconds_ + 0.3 * each;
}

double StepCost::decode_seconds(std::int64_t n) const {
  if (weight_ == 0) return 0;
  const double mean_n = n_ / weight_, mean_s = s_ / weight_;
  const double variance = nn_ / weight_ - mean_n * mean_n;
  // Too little spread to see a slope, or noise that makes it negative: the mean, whatever n.
  constexpr double kLeastSpread = 0.25;  // sequences, squared
  const double slope =
      variance < kLeastSpread ? 0 : std::max((ns_ / weight_ - mean_n * mean_s) / variance, 0.0);
  // Nor may noise put the line below what no step can be: less than half of what one sequence's share says.
  const double least = mean_s * std::min(1.0, static_cast<double>(n) / std::max(mean_n, 1.0)) / 2;
  return std::max(mean_s + slope * (static_cast<double>(n) - mean_n), least);
}

std::int64_t StepCost::grant(std::int64_t decoding, double seconds) {
  granted_ = most_;
  if (prompt_seconds_ > 0) {
    const double fits = (seconds - decode_seconds(decoding)) / prompt_seconds_;
    if (fits < static_cast<double>(most_)) granted_ = std::max(kLeast, static_cast<std::int64_t>(fits));
  }
  return granted_;
}

}  // namespace hadal
