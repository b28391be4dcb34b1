// The search for values that no weight may have: every code of the small formats against what it decodes to,
// and every place in a block.
#include "tensor/finite.h"

#include <cmath>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "tensor/codec.h"

namespace hadal {
namespace {

template <class Word>
std::int64_t search(DType dtype, const std::vector<Word>& words) {
  // From an odd address: files promise no alignment.
  std::vector<std::byte> bytes(words.size() * sizeof(Word) + 1);
  std::memcpy(bytes.data() + 1, words.data(), words.size() * sizeof(Word));
  return first_not_finite(dtype, bytes.data() + 1, static_cast<std::int64_t>(words.size()));
}

TEST(Finite, AgreesWithTheCodecsOnEveryCode) {
  for (int code = 0; code < 65536; ++code) {
    const auto half = static_cast<std::uint16_t>(code);
    ASSERT_EQ(search<std::uint16_t>(DType::bf16, {half}) < 0, std::isfinite(bf16_to_f32(half))) << code;
    ASSERT_EQ(search<std::uint16_t>(DType::f16, {half}) < 0, std::isfinite(f16_to_f32(half))) << code;
    if (code > 255) continue;
    const auto byte = static_cast<std::uint8_t>(code);
    ASSERT_EQ(search<std::uint8_t>(DType::f8_e4m3, {byte}) < 0, std::isfinite(e4m3_to_f32(byte))) << code;
    ASSERT_EQ(search<std::uint8_t>(DType::f8_e8m0, {byte}) < 0, std::isfinite(e8m0_to_f32(byte))) << code;
    ASSERT_EQ(search<std::uint8_t>(DType::i8, {byte}), -1) << "integers are finite";
  }
  for (const float x : {0.0F, -1.0F, 3.4028235e38F, 1e-45F, INFINITY, -INFINITY, NAN, -NAN})
    EXPECT_EQ(search<float>(DType::f32, {x}) < 0, std::isfinite(x)) << x;
}

TEST(Finite, FindsTheFirstWhereverItIs) {
  for (const std::int64_t n : {1, 31, 2048, 2049, 5000}) {
    std::vector<std::uint16_t> words(static_cast<std::size_t>(n), 0x3f80);
    EXPECT_EQ(search(DType::bf16, words), -1);
    for (std::int64_t at = n - 1; at >= 0; at = at > 70 ? at - 67 : at - 1) {  // those behind it stay
      words[static_cast<std::size_t>(at)] = 0xff80;
      ASSERT_EQ(search(DType::bf16, words), at) << n;
    }
  }
  EXPECT_EQ(first_not_finite(DType::bf16, nullptr, 0), -1);
}

TEST(Finite, LargestScalesKeepTheLargestCodesFinite) {
  EXPECT_TRUE(std::isfinite(448 * e8m0_to_f32(kMostScaleOfE4m3)));
  EXPECT_FALSE(std::isfinite(448 * e8m0_to_f32(kMostScaleOfE4m3 + 1)));
  EXPECT_TRUE(std::isfinite(6 * e8m0_to_f32(kMostScaleOfE2m1)));
  EXPECT_FALSE(std::isfinite(6 * e8m0_to_f32(kMostScaleOfE2m1 + 1)));
  const std::vector<std::uint8_t> scales = {0, 127, kMostScaleOfE4m3, kMostScaleOfE2m1, 255};
  EXPECT_EQ(first_scale_above(kMostScaleOfE4m3, scales.data(), 5), 3);
  EXPECT_EQ(first_scale_above(kMostScaleOfE2m1, scales.data(), 5), 4);
  EXPECT_EQ(first_scale_above(kMostScaleOfE2m1, scales.data(), 4), -1);
}

}  // namespace
}  // namespace hadal
