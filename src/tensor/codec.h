// Conversions between float and the narrow number formats (docs/formats.md; architecture.md section 7).
// Encoders round to nearest, ties to even; out-of-range values saturate in E4M3 and E2M1, as in the
// quantisers of the official kernel.py, and become infinite in F16 and BF16, as in IEEE 754.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace hadal {

inline float bf16_to_f32(std::uint16_t b) {
  return std::bit_cast<float>(std::uint32_t{b} << 16);
}

inline std::uint16_t f32_to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>((bits >> 16) | 0x40);  // quiet NaN
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float f16_to_f32(std::uint16_t h);
std::uint16_t f32_to_f16(float x);

// E8M0: byte b is 2^(b-127); 255 is NaN.
inline float e8m0_to_f32(std::uint8_t b) {
  if (b == 255) return std::bit_cast<float>(0x7fc00000U);
  if (b == 0) return 0x1p-127F;  // a subnormal float32
  return std::bit_cast<float>(std::uint32_t{b} << 23);
}

// E4M3 and E2M1 code to value, by table.
extern const std::array<float, 256> kE4m3ToF32;
extern const std::array<float, 16> kE2m1ToF32;
inline float e4m3_to_f32(std::uint8_t code) {
  return kE4m3ToF32[code];
}
inline float e2m1_to_f32(std::uint8_t code) {
  return kE2m1ToF32[code & 15];
}

// Saturating at +-448; NaN gives NaN (0x7f with the sign).
std::uint8_t f32_to_e4m3(float x);
// Saturating at +-6; NaN gives 0. The code is in the low four bits.
std::uint8_t f32_to_e2m1(float x);

// The scale of a block with this absolute maximum: 2^ceil(log2(amax * (1/max))), by bit operations on the
// float32 product, as fast_round_scale in the official kernel.py. Returns the E8M0 byte.
inline std::uint8_t e8m0_scale(float amax, float max_inverse) {
  const auto bits = std::bit_cast<std::uint32_t>(amax * max_inverse);
  const std::uint32_t exponent = (bits >> 23) & 0xff;
  return static_cast<std::uint8_t>(exponent + ((bits & 0x7fffff) != 0 ? 1 : 0));
}

}  // namespace hadal
