// How the rows of a sequence's state lie in memory (docs/sequence_state.md), and their way there and back.
//
// In simulated numerics the values of a row are E4M3 or E2M1 numbers times a power of two before they are
// stored, and its rope entries are BF16 numbers; the narrow formats then keep them without loss.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hadal {

enum class RowFormat : std::uint8_t {
  f32,        // dim floats
  fp8_bf16,   // attention rows: E4M3 codes, E8M0 scales of 64 each, the rope entries in BF16
  fp4_tiles,  // index rows: E2M1 codes, E8M0 scales of 32 each, interleaved in tiles of 16 rows
  fp8_f32,    // both kinds of V3.2: E4M3 codes, float32 scales of 128 each, the rope entries in BF16
};

// Rows of a tile, and codes of a row that lie together in it: as many rows as a vector has 32-bit lanes, and
// as many codes as such a lane holds.
inline constexpr std::int64_t kTileRows = 16;
inline constexpr std::int64_t kGroupCodes = 8;

struct RowShape {
  RowFormat format = RowFormat::f32;
  std::int64_t dim = 0;
  std::int64_t rope_dim = 0;  // fp8_bf16, fp8_f32: the last entries of the row

  // fp8_bf16, fp8_f32: where the parts of a row begin, in bytes. The codes come first.
  std::int64_t codes() const { return dim - rope_dim; }
  std::int64_t scales_at() const { return codes(); }
  std::int64_t rope_at() const {
    return codes() + (format == RowFormat::fp8_f32 ? codes() / 128 * 4 : (codes() / 64 + 7) / 8 * 8);
  }
  // fp4_tiles: the codes of a tile come first, [dim / 8][16] groups of 4 bytes: byte j of a row's group g has
  // entry 8 g + 2 j in its low and 8 g + 2 j + 1 in its high nibble. Then the scales, [dim / 32][16].
  std::int64_t tile_bytes() const { return kTileRows * (dim / 2 + dim / 32); }

  // Of one row; in tiles a sixteenth of a tile.
  std::int64_t bytes() const {
    switch (format) {
      case RowFormat::fp8_bf16:
      case RowFormat::fp8_f32:
        return rope_at() + 2 * rope_dim;
      case RowFormat::fp4_tiles:
        return dim / 2 + dim / 32;
      case RowFormat::f32:
        break;
    }
    return 4 * dim;
  }
};

// Row `i` of the rows that begin at `rows`, from and to floats [dim]. Storing rounds to the format, which
// changes nothing in rows that are already rounded; reading is exact.
void store_row(const RowShape& shape, const float* row, std::byte* rows, std::int64_t i);
void load_row(const RowShape& shape, const std::byte* rows, std::int64_t i, float* row);

// Rows kept in pages of equal capacity.
struct PagedRows {
  const std::byte* const* pages = nullptr;
  std::int64_t offset = 0;  // of the first row in each page, in bytes
  std::int64_t per_page = 1;
  RowShape shape;

  // The rows of the page that has row i, as its i % per_page-th.
  const std::byte* page_of(std::int64_t i) const { return pages[i / per_page] + offset; }
  void load(std::int64_t i, float* row) const { load_row(shape, page_of(i), i % per_page, row); }
};

}  // namespace hadal
