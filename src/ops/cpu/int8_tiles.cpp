#include "ops/cpu/int8_tiles.h"

#include <algorithm>
#include <array>
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

// What the codes of 32 FP8 entries become, by the largest |code| among them (E4M3 without its sign orders as
// its values do). The block's power of two is left out: ref::int8_block divides by a scale that it makes from
// the largest value, and a power of two on both sides changes no bit of the quotient.
struct Int8Codes {
  struct Row {
    std::array<std::uint8_t, 256> code;  // of each E4M3 code, plus 128
    float scale = 0;
  };
  std::array<Row, 128> by_largest;

  Int8Codes() {
    for (Row& row : by_largest) row.code.fill(128);
    for (std::size_t largest = 0; largest < 0x7f; ++largest) {  // 0x7f is NaN, which loading refuses
      Row& row = by_largest[largest];
      float values[32] = {e4m3_to_f32(static_cast<std::uint8_t>(largest))};
      std::int8_t codes[32];
      for (std::size_t code = 0; code < 256; ++code) {
        if ((code & 0x7f) > largest) continue;  // is in no such block
        values[1] = e4m3_to_f32(static_cast<std::uint8_t>(code));
        row.scale = ref::int8_block(values, codes);
        row.code[code] = static_cast<std::uint8_t>(codes[1] + 128);
      }
    }
  }
  static const Int8Codes& get() {
    static const Int8Codes kCodes;
    return kCodes;
  }
};

// Entries 32b .. 32b + 31 of row r of a tile.
void pack_block(const Int8Codes& table, const std::byte* entries, float power, std::int64_t r,
                std::byte* codes, std::byte* scales) {
  std::uint8_t largest = 0;
  for (std::int64_t k = 0; k < 32; ++k)
    largest = std::max(largest, static_cast<std::uint8_t>(std::to_integer<unsigned>(entries[k]) & 0x7f));
  // The smallest blocks count as zero, by their values: the power of two tells which.
  const bool something = e4m3_to_f32(largest) * power > ref::kNothing;
  const Int8Codes::Row& row = table.by_largest[something ? largest : 0];
  for (std::int64_t k = 0; k < 32; k += 8) {
    for (std::int64_t odd = 0; odd < 2; ++odd) {
      const auto code = [&](std::int64_t i) {
        return std::uint32_t{row.code[std::to_integer<std::size_t>(entries[k + odd + 2 * i])]} << (8 * i);
      };
      const std::uint32_t four = code(0) | code(1) | code(2) | code(3);
      std::memcpy(codes + code_at(k + odd, r), &four, 4);
    }
  }
  const std::uint16_t bits = f32_to_bf16(row.scale * power);
  std::memcpy(scales + 2 * r, &bits, 2);
}

}  // namespace

void pack_int8_tile(const Linear& w, std::int64_t tile, std::byte* out) {
  const Int8Codes& table = Int8Codes::get();
  const std::int64_t first = tile * Int8Tiles::kRows, rows = std::min(Int8Tiles::kRows, w.out - first);
  if (rows < Int8Tiles::kRows) pack_int8_tile_plainly(w, tile, out);  // for the rows that are not there
  const std::int64_t row_scales = (w.in + 127) / 128;
  // 512 entries of all rows at a time: what is written stays in the first-level cache.
  for (std::int64_t k = 0; k < w.in; k += Int8Tiles::kDepth) {
    const std::int64_t groups = std::min(Int8Tiles::kDepth, w.in - k) / 128;
    std::byte* const codes = out + Int8Tiles::bytes(k);
    std::byte* const scales = codes + groups * 4 * Int8Tiles::kCodeBytes;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::byte* entries = w.weight + (first + r) * w.in + k;
      const std::uint8_t* e8m0 = w.scale + (first + r) / 128 * row_scales + k / 128;
      for (std::int64_t group = 0; group < groups; ++group) {
        const float power = e8m0_to_f32(e8m0[group]);
        for (std::int64_t chain = 0; chain < 4; ++chain) {
          const std::int64_t at = chain * groups + group;
          pack_block(table, entries + group * 128 + chain * 32, power, r, codes + at * Int8Tiles::kCodeBytes,
                     scales + at * Int8Tiles::kScaleBytes);
        }
      }
    }
  }
}

void pack_int8_tile_plainly(const Linear& w, std::int64_t tile, std::byte* out) {
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
