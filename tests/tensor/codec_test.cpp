// The number formats against brute force: values from the definition of each format in double, encoders
// against the nearest of all values, ties to the even code.
#include "tensor/codec.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace hadal {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// (-1)^s 2^(e-bias) (1 + m/2^bits), or 2^(1-bias) m/2^bits for e = 0.
double value_of(int code, int exponent_bits, int mantissa_bits, int bias) {
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  const int exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int sign = code >> (mantissa_bits + exponent_bits);
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                               : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return sign != 0 ? -magnitude : magnitude;
}

// The nearest of the non-negative codes 0..largest, whose values ascend; a tie goes to the even one.
int nearest(double x, int largest, double (*value)(int)) {
  int best = 0;
  for (int code = 1; code <= largest; ++code) {
    const double nearer = std::fabs(value(best) - x) - std::fabs(value(code) - x);
    if (nearer > 0 || (nearer == 0 && code % 2 == 0)) best = code;
  }
  return best;
}

double e4m3(int code) {
  return value_of(code, 4, 3, 7);
}
double e2m1(int code) {
  return value_of(code, 2, 1, 1);
}
double f16(int code) {
  return value_of(code, 5, 10, 15);
}

// Every value, every midpoint, and the float32 neighbours of both.
std::vector<float> probes(int largest, double (*value)(int)) {
  std::vector<float> all;
  const auto add = [&](double x) {
    const auto center = static_cast<float>(x);
    for (const float y : {std::nextafter(center, 0.F), center, std::nextafter(center, kInfinity)}) {
      all.push_back(y);
      all.push_back(-y);
    }
  };
  for (int code = 0; code <= largest; ++code) {
    add(value(code));
    if (code < largest) add((value(code) + value(code + 1)) / 2);
  }
  for (const double x : {1e-45, 1e-38, 1e-10, 1e5}) add(x);
  return all;
}

TEST(Codec, E4m3DecodesByItsDefinition) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_f32(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, e4m3(code)) << code;
      EXPECT_EQ(std::signbit(value), code >= 128) << code;
    }
  }
}

TEST(Codec, E4m3EncodesTheNearestValue) {
  for (const float x : probes(0x7e, e4m3)) {
    const int expected = nearest(std::fabs(x), 0x7e, e4m3) | (std::signbit(x) ? 0x80 : 0);
    EXPECT_EQ(f32_to_e4m3(x), expected) << x;
  }
  EXPECT_EQ(f32_to_e4m3(kInfinity), 0x7e);
  EXPECT_EQ(f32_to_e4m3(-kInfinity), 0xfe);
  EXPECT_EQ(f32_to_e4m3(kNaN), 0x7f);
}

TEST(Codec, E2m1DecodesAndEncodesTheNearestValue) {
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(e2m1_to_f32(static_cast<std::uint8_t>(code)), e2m1(code)) << code;
    EXPECT_EQ(std::signbit(e2m1_to_f32(static_cast<std::uint8_t>(code))), code >= 8) << code;
  }
  for (const float x : probes(7, e2m1)) {
    const int expected = nearest(std::fabs(x), 7, e2m1) | (std::signbit(x) ? 8 : 0);
    EXPECT_EQ(f32_to_e2m1(x), expected) << x;
  }
  EXPECT_EQ(f32_to_e2m1(kInfinity), 7);
  EXPECT_EQ(f32_to_e2m1(kNaN), 0);
}

TEST(Codec, F16SurvivesTheRoundTripAndDecodesByItsDefinition) {
  for (int code = 0; code < 0x10000; ++code) {
    const auto half = static_cast<std::uint16_t>(code);
    const float value = f16_to_f32(half);
    if ((code & 0x7c00) != 0x7c00) {
      ASSERT_EQ(value, f16(code)) << code;
      ASSERT_EQ(f32_to_f16(value), half);
    } else if ((code & 0x3ff) == 0) {
      ASSERT_EQ(value, code >= 0x8000 ? -kInfinity : kInfinity);
      ASSERT_EQ(f32_to_f16(value), half);
    } else {
      ASSERT_TRUE(std::isnan(value));
      ASSERT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value))));
    }
  }
}

// Between neighbours: below the midpoint down, above it up, on it to the even code. The step above the
// largest number is infinity.
TEST(Codec, F16RoundsToNearestEven) {
  for (int code = 0; code < 0x7c00; ++code) {
    const double next = code + 1 == 0x7c00 ? 65536 : f16(code + 1);
    const auto middle = static_cast<float>((f16(code) + next) / 2);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.F)), code);
    ASSERT_EQ(f32_to_f16(middle), code % 2 == 0 ? code : code + 1);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, kInfinity)), code + 1);
    ASSERT_EQ(f32_to_f16(-middle), 0x8000 | (code % 2 == 0 ? code : code + 1));
  }
}

TEST(Codec, Bf16SurvivesTheRoundTripAndRoundsToNearestEven) {
  for (std::uint32_t code = 0; code < 0x10000; ++code) {
    const auto narrow = static_cast<std::uint16_t>(code);
    const float value = bf16_to_f32(narrow);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(value), code << 16);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
      continue;
    }
    ASSERT_EQ(f32_to_bf16(value), narrow);
    if (std::isinf(value)) continue;
    const auto at = [&](std::uint32_t low) { return f32_to_bf16(std::bit_cast<float>(code << 16 | low)); };
    ASSERT_EQ(at(0x7fff), code);
    ASSERT_EQ(at(0x8000), code + (code & 1));
    ASSERT_EQ(at(0x8001), code + 1);
  }
  // NaN payloads that live in the low half only must not become infinite.
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001U)))));
}

TEST(Codec, E8m0IsAPowerOfTwo) {
  for (int code = 0; code < 255; ++code) {
    EXPECT_EQ(e8m0_to_f32(static_cast<std::uint8_t>(code)), std::ldexp(1.0, code - 127)) << code;
  }
  EXPECT_TRUE(std::isnan(e8m0_to_f32(255)));
}

// The smallest power of two that brings amax/max to at most 1; the float32 product decides.
TEST(Codec, BlockScalesRoundUp) {
  for (const float max : {448.F, 6.F}) {
    const float inverse = 1 / max;
    for (float amax = 1e-4F; amax < 1e6F; amax *= 1.0009765625F) {
      const double quotient = amax * inverse;
      const double scale = e8m0_to_f32(e8m0_scale(amax, inverse));
      ASSERT_GE(scale, quotient) << amax;
      ASSERT_LT(scale / 2, quotient) << amax;
    }
    for (int e = -10; e <= 10; ++e) {  // a product that is a power of two is its own scale
      EXPECT_EQ(e8m0_to_f32(e8m0_scale(std::ldexp(1.F, e), 1.F)), std::ldexp(1.F, e));
    }
  }
}

}  // namespace
}  // namespace hadal
