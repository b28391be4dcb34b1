// The values that no weight may have: infinities, NaN, and scales so large that what they scale is infinite.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace hadal {

// The first of n elements that is infinite or NaN; -1 if there is none. Integers, packed FP4 among them,
// never are. `data` need not be aligned.
std::int64_t first_not_finite(DType dtype, const std::byte* data, std::int64_t n);

// The largest E8M0 byte whose power of two times the largest value of the format is finite in float32, below
// 2^128: E4M3 reaches 448 = 1.75 * 2^8, E2M1 reaches 6 = 1.5 * 2^2.
inline constexpr std::uint8_t kMostScaleOfE4m3 = 127 + 119;
inline constexpr std::uint8_t kMostScaleOfE2m1 = 127 + 125;
// The first of n E8M0 bytes above `most`, NaN (255) among them; -1 if there is none.
std::int64_t first_scale_above(std::uint8_t most, const std::uint8_t* scales, std::int64_t n);

}  // namespace hadal
