// Rotary frequencies, with YaRN where the config asks for it (architecture.md section 3).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model/config.h"

namespace hadal {

class RotaryFrequencies {
 public:
  // rope_dim/2 frequencies base^(-2i/rope_dim), interpolated by `yarn` if there is one. Computed in float32
  // as the official code does: at a million tokens a double angle would differ by 0.01 in its cosine.
  RotaryFrequencies(std::int64_t rope_dim, double base, const std::optional<YarnScaling>& yarn);

  std::span<const float> values() const { return values_; }

  // cos, sin: [positions, rope_dim/2] of position * frequency.
  void angles(std::span<const std::int64_t> positions, float* cos, float* sin) const;

 private:
  std::vector<float> values_;
};

}  // namespace hadal
