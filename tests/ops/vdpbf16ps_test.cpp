// What the BF16 kernels take for granted of the instruction vdpbf16ps: each lane adds to its float32
// accumulator first the product of the odd entries, then that of the even ones, each step rounded once to
// nearest even, with subnormal operands, accumulators and results as zero.
#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "ops/cpu/target.h"
#include "tensor/codec.h"

namespace hadal {

struct Lane {
  float sum, a0, b0, a1, b1;
};

HADAL_TARGET_BEGIN("avx512f,avx512bf16")
namespace {

std::uint32_t pair(float even, float odd) {
  return std::uint32_t{f32_to_bf16(even)} | std::uint32_t{f32_to_bf16(odd)} << 16;
}

float by_instruction(const Lane& x) {
  const __m512i a = _mm512_set1_epi32(static_cast<int>(pair(x.a0, x.a1)));
  const __m512i b = _mm512_set1_epi32(static_cast<int>(pair(x.b0, x.b1)));
  return _mm512_cvtss_f32(
      _mm512_dpbf16_ps(_mm512_set1_ps(x.sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

}  // namespace
HADAL_TARGET_END

namespace {

float flush(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x;
}
float by_hand(const Lane& x) {
  const float odd = flush(std::fma(flush(x.a1), flush(x.b1), flush(x.sum)));
  return flush(std::fma(flush(x.a0), flush(x.b0), odd));
}

class Vdpbf16ps : public testing::Test {
 protected:
  void SetUp() override {
    if (!__builtin_cpu_supports("avx512bf16")) GTEST_SKIP() << "not on this machine";
  }
};

TEST_F(Vdpbf16ps, AddsTheOddProductFirstAndRoundsTwice) {
  EXPECT_EQ(by_instruction({-0x1p30F, 0x1p-10F, 1, 0x1p30F, 1}), 0x1p-10F);
  EXPECT_EQ(by_instruction({-0x1p30F, 0x1p30F, 1, 0x1p-10F, 1}), 0);
  EXPECT_EQ(by_instruction({1, 0x1p-24F, 1, 0x1p-24F, 1}), 1);  // one rounding of the sum: 1 + 2^-23
}

TEST_F(Vdpbf16ps, TakesSubnormalsForZero) {
  EXPECT_EQ(by_instruction({0, 0x1p-130F, 0x1p60F, 0, 0}), 0);
  EXPECT_EQ(by_instruction({0x1p-130F, 0, 0, 0, 0}), 0);
  EXPECT_EQ(by_instruction({0, 0x1p-70F, 0x1p-60F, 0, 0}), 0);
  EXPECT_EQ(by_instruction({0, 0x1p-126F, 1, 0, 0}), 0x1p-126F);
}

TEST_F(Vdpbf16ps, IsTwoFusedMultiplyAdds) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-70, 60);
  const auto number = [&] { return std::ldexp(normal(generator), exponent(generator)); };
  const auto bf16 = [&] { return bf16_to_f32(f32_to_bf16(number())); };
  for (int i = 0; i < 100000; ++i) {
    const Lane x{number(), bf16(), bf16(), bf16(), bf16()};
    ASSERT_EQ(by_instruction(x), by_hand(x))
        << x.sum << " " << x.a0 << " " << x.b0 << " " << x.a1 << " " << x.b1;
  }
}

TEST_F(Vdpbf16ps, CarriesInfinityAndNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(by_instruction({0, infinity, 1, 1, 1}), infinity);
  EXPECT_TRUE(std::isnan(by_instruction({0, infinity, 0, 1, 1})));
  EXPECT_TRUE(std::isnan(by_instruction({0, 1, 1, std::numeric_limits<float>::quiet_NaN(), 1})));
}

}  // namespace
}  // namespace hadal

#endif
