#include "ops/cpu/int8_tiles.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal::cpu {
namespace {

// Calls visit(b, codes, scale) for every 32 entries b of K: byte offsets of their codes and scales in a tile.
template <class Visit>
void for_each_block(std::int64_t in, Visit&& visit) {
  for (std::int64_t k = 0; k < in; k += Int8Tiles::kDepth) {
    const std::int64_t groups = std::min(Int8Tiles::kDepth, in - k) / 128;
    const std::int64_t codes = Int8Tiles::bytes(k), scales = codes + groups * 4 * Int8Tiles::kCodeBytes;
    for (std::int64_t chain = 0; chain < 4; ++chain) {
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t at = chain * groups + group;
        visit(k / 32 + group * 4 + chain, codes + at * Int8Tiles::kCodeBytes,
              scales + at * Int8Tiles::kScaleBytes);
      }
    }
  }
}

// Byte of entry k (of 32) of row r among the codes of 32 entries.
constexpr std::int64_t code_at(std::int64_t k, std::int64_t r) {
  return (k % 2 * 4 + k / 8) * 64 + r * 4 + k % 8 / 2;
}

}  // namespace

void pack_int8_tile(const Linear& w, std::int64_t tile, std::byte* out) {
  std::vector<std::int8_t> codes(static_cast<std::size_t>(w.in));
  std::vector<float> scales(static_cast<std::size_t>(w.in / 32));
  for (std::int64_t r = 0; r < Int8Tiles::kRows; ++r) {
    const std::int64_t row = tile * Int8Tiles::kRows + r;
    if (row < w.out) {
      ref::int8_row(w, row, codes.data(), scales.data());
    } else {
      std::fill(codes.begin(), codes.end(), std::int8_t{0});
      std::fill(scales.begin(), scales.end(), 0.0F);
    }
    for_each_block(w.in, [&](std::int64_t b, std::int64_t code_bytes, std::int64_t scale_bytes) {
      for (std::int64_t k = 0; k < 32; ++k)
        out[code_bytes + code_at(k, r)] =
            static_cast<std::byte>(codes[static_cast<std::size_t>(b * 32 + k)] + 128);
      const std::uint16_t bits = f32_to_bf16(scales[static_cast<std::size_t>(b)]);
      std::memcpy(out + scale_bytes + 2 * r, &bits, 2);
    });
  }
}

void unpack_int8_row(const std::byte* tiles, std::int64_t in, std::int64_t row, std::int8_t* codes,
                     float* scales) {
  const std::byte* tile = tiles + row / Int8Tiles::kRows * Int8Tiles::bytes(in);
  const std::int64_t r = row % Int8Tiles::kRows;
  for_each_block(in, [&](std::int64_t b, std::int64_t code_bytes, std::int64_t scale_bytes) {
    for (std::int64_t k = 0; k < 32; ++k)
      codes[b * 32 + k] =
          static_cast<std::int8_t>(std::to_integer<int>(tile[code_bytes + code_at(k, r)]) - 128);
    std::uint16_t bits = 0;
    std::memcpy(&bits, tile + scale_bytes + 2 * r, 2);
    scales[b] = bf16_to_f32(bits);
  });
}

}  // namespace hadal::cpu
