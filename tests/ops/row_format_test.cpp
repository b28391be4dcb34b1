// Rows to their stored form and back: where the bytes lie, and that rounded rows survive bit for bit.
#include "ops/row_format.h"

#include <cstring>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

// Rows of any magnitude, with zeros of both signs and blocks of nothing but zeros.
std::vector<float> rough_rows(std::int64_t rows, std::int64_t dim, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(rows * dim));
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (i % 32 == 0)
      normal = std::normal_distribution<float>(0, std::ldexp(1.0F, static_cast<int>(generator() % 60) - 40));
    out[i] = i / 64 % 9 == 8 ? 0.0F : i % 17 == 0 ? -0.0F : normal(generator);
  }
  return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

TEST(RowFormat, PublishedSizes) {
  EXPECT_EQ((RowShape{RowFormat::fp8_bf16, 512, 64}.bytes()), 584);
  EXPECT_EQ((RowShape{RowFormat::fp4_tiles, 128, 0}.bytes()), 68);
  EXPECT_EQ((RowShape{RowFormat::fp4_tiles, 128, 0}.tile_bytes()), 1088);
  EXPECT_EQ((RowShape{RowFormat::f32, 512, 64}.bytes()), 2048);
}

TEST(RowFormat, AttentionRowsSurvive) {
  ThreadPool pool(1);
  for (const std::int64_t dim : {128, 192, 512}) {
    const std::int64_t rope = 64, rows = 200;
    const RowShape shape{RowFormat::fp8_bf16, dim, rope};
    auto x = rough_rows(rows, dim, 3);
    ref::quantise({QuantiseParams::Format::e4m3_64, rows, dim, dim - rope, x.data()}, pool);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = dim - rope; i < dim; ++i) {
        float& value = x[static_cast<std::size_t>(r * dim + i)];
        value = bf16_to_f32(f32_to_bf16(value));
      }
    }
    std::vector<std::byte> stored(static_cast<std::size_t>(rows * shape.bytes()), std::byte{0xee});
    std::vector<float> back(x.size());
    for (std::int64_t r = 0; r < rows; ++r) store_row(shape, x.data() + r * dim, stored.data(), r);
    for (std::int64_t r = 0; r < rows; ++r) load_row(shape, stored.data(), r, back.data() + r * dim);
    EXPECT_TRUE(same(back, x)) << dim;
  }
}

TEST(RowFormat, IndexRowsSurvive) {
  ThreadPool pool(1);
  for (const std::int64_t dim : {32, 64, 128}) {
    const std::int64_t rows = 32 * 5;
    const RowShape shape{RowFormat::fp4_tiles, dim, 0};
    auto x = rough_rows(rows, dim, 4);
    ref::quantise({QuantiseParams::Format::e2m1_32, rows, dim, dim, x.data()}, pool);
    std::vector<std::byte> stored(static_cast<std::size_t>(rows * shape.bytes()), std::byte{0xee});
    std::vector<float> back(x.size());
    for (std::int64_t r = rows - 1; r >= 0; --r) store_row(shape, x.data() + r * dim, stored.data(), r);
    for (std::int64_t r = 0; r < rows; ++r) load_row(shape, stored.data(), r, back.data() + r * dim);
    EXPECT_TRUE(same(back, x)) << dim;
  }
}

TEST(RowFormat, WhereTheBytesOfAnAttentionRowLie) {
  // 128 entries of which 64 rope: 64 codes, 1 scale, 7 of padding, 64 BF16.
  const RowShape shape{RowFormat::fp8_bf16, 128, 64};
  ASSERT_EQ(shape.bytes(), 64 + 8 + 128);
  std::vector<float> row(128);
  row[0] = 448, row[63] = -1, row[64] = 1, row[127] = -2;
  std::vector<std::byte> stored(static_cast<std::size_t>(2 * shape.bytes()), std::byte{0xee});
  store_row(shape, row.data(), stored.data(), 1);
  const std::byte* at = stored.data() + shape.bytes();
  EXPECT_EQ(at[0], std::byte{0x7e});
  EXPECT_EQ(at[63], std::byte{0xb8});
  EXPECT_EQ(at[64], std::byte{127});
  for (int i = 65; i < 72; ++i) EXPECT_EQ(at[i], std::byte{0}) << i;
  EXPECT_EQ(at[72], std::byte{0x80});
  EXPECT_EQ(at[73], std::byte{0x3f});
  EXPECT_EQ(at[72 + 126], std::byte{0x00});
  EXPECT_EQ(at[72 + 127], std::byte{0xc0});
  EXPECT_EQ(stored[199], std::byte{0xee}) << "the row before was touched";
}

TEST(RowFormat, WhereTheBytesOfAnIndexRowLie) {
  const RowShape shape{RowFormat::fp4_tiles, 128, 0};
  std::vector<float> row(128);
  // E2M1 codes 7 (6) and 1 (0.5) at entries 44 and 45: group 5, byte 2, low and high nibble.
  row[44] = 6, row[45] = 0.5F;
  row[127] = -12;  // block 3 has scale 2
  std::vector<std::byte> stored(static_cast<std::size_t>(2 * shape.tile_bytes()));
  store_row(shape, row.data(), stored.data(), 16 + 3);
  const std::byte* tile = stored.data() + 1088;
  EXPECT_EQ(tile[(5 * 16 + 3) * 4 + 2], std::byte{0x17});
  EXPECT_EQ(tile[(15 * 16 + 3) * 4 + 3], std::byte{0xf0});
  EXPECT_EQ(tile[1024 + 1 * 16 + 3], std::byte{127});
  EXPECT_EQ(tile[1024 + 3 * 16 + 3], std::byte{128});
  for (int i = 0; i < 1088; ++i) EXPECT_EQ(stored[static_cast<std::size_t>(i)], std::byte{0}) << i;
}

}  // namespace
}  // namespace hadal
