#include "tensor/codec.h"

namespace hadal {
namespace {

constexpr std::array<float, 256> make_e4m3_table() {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15;
    const int mantissa = code & 7;
    float value = 0;
    if (exponent == 15 && mantissa == 7) {
      value = std::bit_cast<float>(0x7fc00000U);
    } else if (exponent == 0) {
      value = static_cast<float>(mantissa) * 0x1p-9F;  // subnormal: mantissa/8 * 2^-6
    } else {
      // float32 has the same fields, wider: bias 127 against 7, 23 mantissa bits against 3.
      value = std::bit_cast<float>(static_cast<std::uint32_t>((exponent + 120) << 23 | mantissa << 20));
    }
    table[static_cast<std::size_t>(code)] = (code & 128) != 0 ? -value : value;
  }
  return table;
}

}  // namespace

const std::array<float, 256> kE4m3ToF32 = make_e4m3_table();
const std::array<float, 16> kE2m1ToF32 = {0, .5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -.5F, -1, -1.5F, -2, -3, -4, -6};

std::uint8_t f32_to_e4m3(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint8_t>((bits >> 24) & 0x80);
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7f;
  const float a = std::bit_cast<float>(magnitude);
  if (a >= 448) return sign | 0x7e;
  if (a < 0x1p-6F) {
    // Subnormal: adding 2^14 leaves the bits from 2^-9 up in the mantissa, rounded to nearest even by the
    // addition itself. A carry into 2^-6 gives code 8, the smallest normal, as it should.
    return sign | static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(a + 0x1p14F) & 0xff);
  }
  const std::uint32_t rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);  // to 3 mantissa bits
  const std::uint32_t code = (rounded >> 20) - (120U << 3);
  return sign | static_cast<std::uint8_t>(code > 0x7e ? 0x7e : code);
}

std::uint8_t f32_to_e2m1(float x) {
  const auto sign = static_cast<std::uint8_t>((std::bit_cast<std::uint32_t>(x) >> 28) & 8);
  const float a = std::fabs(x);
  // The midpoints between neighbours; a tie goes to the even code.
  std::uint8_t code = 0;
  if (!(a > .25F))
    code = 0;
  else if (a < .75F)
    code = 1;
  else if (a <= 1.25F)
    code = 2;
  else if (a < 1.75F)
    code = 3;
  else if (a <= 2.5F)
    code = 4;
  else if (a < 3.5F)
    code = 5;
  else if (a <= 5.F)
    code = 6;
  else
    code = 7;
  return sign | code;
}

float f16_to_f32(std::uint16_t h) {
  const std::uint32_t sign = std::uint32_t{h & 0x8000U} << 16;
  const std::uint32_t exponent = (h >> 10) & 31;
  const std::uint32_t mantissa = h & 0x3ff;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

std::uint16_t f32_to_f16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14: adding 0.5 leaves multiples of 2^-24 in the mantissa, rounded to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return sign | static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(shifted) - 0x3f000000);
  }
  const std::uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | static_cast<std::uint16_t>((rounded >> 13) - (112U << 10));
}

}  // namespace hadal
