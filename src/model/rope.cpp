#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/ref/ref.h"

namespace hadal {

RotaryFrequencies::RotaryFrequencies(std::int64_t rope_dim, double base,
                                     const std::optional<YarnScaling>& yarn) {
  const auto dim = static_cast<double>(rope_dim);
  values_.resize(static_cast<std::size_t>(rope_dim / 2));
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rope_dim);
    values_[i] = 1.0F / static_cast<float>(std::pow(base, static_cast<double>(exponent)));
  }
  if (!yarn || yarn->original_max_position_embeddings == 0) return;

  // Frequencies that turn fewer than beta_slow times over the original length are interpolated, those that
  // turn more than beta_fast times are kept, with a linear ramp between the two dimensions.
  const auto dimension_of = [&](double rotations) {
    const auto length = static_cast<double>(yarn->original_max_position_embeddings);
    return dim * std::log(length / (rotations * 2 * std::numbers::pi)) / (2 * std::log(base));
  };
  const double low = std::max(0.0, std::floor(dimension_of(yarn->beta_fast)));
  double high = std::min(dim - 1, std::ceil(dimension_of(yarn->beta_slow)));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float keep = 1.0F - std::clamp(ramp, 0.0F, 1.0F);
    values_[i] = values_[i] / static_cast<float>(yarn->factor) * (1.0F - keep) + values_[i] * keep;
  }
}

void RotaryFrequencies::angles(std::span<const std::int64_t> positions, float* cos, float* sin) const {
  ref::angles({positions, values_, cos, sin});
}

}  // namespace hadal
