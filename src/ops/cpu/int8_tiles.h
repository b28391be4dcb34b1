// FP8 weights as `int8` numerics multiply them: int8 codes with one BF16 scale per 1x32 (ref::int8_row), made
// once at load and laid out so that one linear stream feeds vpdpbusd, which takes four bytes a lane, a lane
// being a row.
//
// A matrix is tiles of 16 rows, a tile is blocks of 512 entries of K (the last may be shorter by groups of
// 128), a block is chain by chain, group by group (kernels.h: chain c of a group is its c-th 32 entries)
// first the codes of those 32 entries, then, after all codes of the block, the scales in the same order:
//   codes:  8 vectors of 64 bytes; vector v < 4: row r's byte j is entry 8v + 2j, vector 4 + v: entry 8v + 2j
//   + 1
//           (as FP4 unpacks: low nibbles, high nibbles); stored plus 128, since vpdpbusd wants one side
//           unsigned
//   scales: 16 BF16
// Rows beyond the matrix have scale 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear.h"

namespace hadal::cpu {

struct Int8Tiles {
  static constexpr std::int64_t kRows = 16;
  static constexpr std::int64_t kDepth = 512;
  static constexpr std::int64_t kCodeBytes = 512, kScaleBytes = 32;  // of 32 entries

  // Bytes of a tile, and of its first `k` entries (k a multiple of 512, or in).
  static constexpr std::int64_t bytes(std::int64_t k) { return k / 32 * (kCodeBytes + kScaleBytes); }
  static constexpr std::int64_t tiles(std::int64_t out) { return (out + kRows - 1) / kRows; }
};

// Tile `tile` of W, an FP8 matrix with in % 128 == 0, into out [Int8Tiles::bytes(w.in)].
void pack_int8_tile(const Linear& w, std::int64_t tile, std::byte* out);
// The same, value by value through ref::int8_row.
void pack_int8_tile_plainly(const Linear& w, std::int64_t tile, std::byte* out);

// Row `row` of packed tiles of a matrix with `in` columns: its codes [in] in natural order and scales
// [in/32].
void unpack_int8_row(const std::byte* tiles, std::int64_t in, std::int64_t row, std::int8_t* codes,
                     float* scales);

}  // namespace hadal::cpu
