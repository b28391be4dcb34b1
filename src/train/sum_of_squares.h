// The sum of squares of float32 numbers, in double and in one fixed order: eight running sums, so that an
// addition need not wait for the one before.
#pragma once

#include <cstddef>
#include <span>

namespace hadal {

inline double sum_of_squares(std::span<const float> x) {
  constexpr std::size_t kSums = 8;
  double sums[kSums] = {};
  std::size_t i = 0;
  for (; i + kSums <= x.size(); i += kSums) {
    for (std::size_t j = 0; j < kSums; ++j)
      sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  }
  for (std::size_t j = 0; i < x.size(); ++i, ++j)
    sums[j] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace hadal
