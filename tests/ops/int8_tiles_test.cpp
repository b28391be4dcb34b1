// FP8 weights as int8 tiles: packing by table is packing value by value, bit for bit; unpacking gives back
// what the reference multiplies with.
#include "ops/cpu/int8_tiles.h"

#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "ops/ref/ref.h"

namespace hadal::cpu {
namespace {

// FP8 weights of any finite codes. Per 32 entries the codes reach up to a different largest one, so that
// every row of the table is used, 0 among them.
struct Weights {
  std::vector<std::byte> codes;
  std::vector<std::uint8_t> scales;
  Linear linear;

  Weights(std::int64_t out, std::int64_t in, unsigned seed, unsigned least_scale, unsigned most_scale)
      : codes(static_cast<std::size_t>(out * in)),
        scales(static_cast<std::size_t>((out + 127) / 128 * ((in + 127) / 128))),
        linear{out, in, Linear::Format::fp8, codes.data(), scales.data()} {
    std::mt19937 random(seed);
    unsigned most = 0;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      if (i % 32 == 0) most = random() % 0x7f;
      codes[i] = static_cast<std::byte>(random() % (most + 1) | (random() & 0x80));
    }
    for (std::uint8_t& scale : scales)
      scale = static_cast<std::uint8_t>(least_scale + random() % (most_scale - least_scale + 1));
  }
};

void expect_same_tiles(const Weights& w) {
  const auto bytes = static_cast<std::size_t>(Int8Tiles::bytes(w.linear.in));
  std::vector<std::byte> fast(bytes), plain(bytes);
  for (std::int64_t tile = 0; tile < Int8Tiles::tiles(w.linear.out); ++tile) {
    std::fill(fast.begin(), fast.end(), std::byte{0xa5});
    std::fill(plain.begin(), plain.end(), std::byte{0x5a});
    pack_int8_tile(w.linear, tile, fast.data());
    pack_int8_tile_plainly(w.linear, tile, plain.data());
    ASSERT_EQ(std::memcmp(fast.data(), plain.data(), bytes), 0)
        << "tile " << tile << " of [" << w.linear.out << ", " << w.linear.in << "]";
  }
}

TEST(Int8Tiles, PackingByTableIsPackingValueByValue) {
  for (const std::int64_t in : {128, 384, 512, 640, 1152}) {
    for (const std::int64_t out : {1, 15, 16, 17, 128, 131}) expect_same_tiles({out, in, 3, 118, 130});
  }
}

// The smallest blocks become nothing, the largest stay finite.
TEST(Int8Tiles, EveryPowerOfTwoPacksAlike) {
  for (unsigned scale = 0; scale <= 246; ++scale) expect_same_tiles({17, 256, scale, scale, scale});
}

TEST(Int8Tiles, UnpackingGivesTheReferencesCodes) {
  const Weights w(37, 640, 5, 118, 130);
  const std::int64_t in = w.linear.in, blocks = in / 32;
  std::vector<std::byte> tiles(
      static_cast<std::size_t>(Int8Tiles::tiles(w.linear.out) * Int8Tiles::bytes(in)));
  for (std::int64_t tile = 0; tile < Int8Tiles::tiles(w.linear.out); ++tile)
    pack_int8_tile(w.linear, tile, tiles.data() + tile * Int8Tiles::bytes(in));
  std::vector<std::int8_t> codes(static_cast<std::size_t>(in)), expected(codes.size());
  std::vector<float> scales(static_cast<std::size_t>(blocks)), expected_scales(scales.size());
  for (std::int64_t row = 0; row < w.linear.out; ++row) {
    unpack_int8_row(tiles.data(), in, row, codes.data(), scales.data());
    ref::int8_row(w.linear, row, expected.data(), expected_scales.data());
    ASSERT_EQ(codes, expected) << row;
    ASSERT_EQ(scales, expected_scales) << row;
  }
}

}  // namespace
}  // namespace hadal::cpu
