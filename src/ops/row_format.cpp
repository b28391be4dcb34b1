#include "ops/row_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

void store_rope(const RowShape& shape, const float* row, std::byte* to) {
  for (std::int64_t i = 0; i < shape.rope_dim; ++i) {
    const std::uint16_t bits = f32_to_bf16(row[shape.codes() + i]);
    std::memcpy(to + shape.rope_at() + 2 * i, &bits, sizeof(bits));
  }
}

void load_rope(const RowShape& shape, const std::byte* from, float* row) {
  for (std::int64_t i = 0; i < shape.rope_dim; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, from + shape.rope_at() + 2 * i, sizeof(bits));
    row[shape.codes() + i] = bf16_to_f32(bits);
  }
}

void store_fp8_bf16(const RowShape& shape, const float* row, std::byte* to) {
  std::array<float, 64> values;
  std::array<std::uint8_t, 64> codes;
  std::fill(to + shape.scales_at(), to + shape.rope_at(), std::byte{0});  // the padding too
  for (std::int64_t i = 0; i < shape.codes(); i += 64) {
    std::copy_n(row + i, 64, values.data());
    to[shape.scales_at() + i / 64] = std::byte{ref::quantise_e4m3_block(values.data(), 64, codes.data())};
    std::memcpy(to + i, codes.data(), codes.size());
  }
  store_rope(shape, row, to);
}

void load_fp8_bf16(const RowShape& shape, const std::byte* from, float* row) {
  for (std::int64_t i = 0; i < shape.codes(); ++i) {
    const float scale = e8m0_to_f32(std::to_integer<std::uint8_t>(from[shape.scales_at() + i / 64]));
    row[i] = e4m3_to_f32(std::to_integer<std::uint8_t>(from[i])) * scale;
  }
  load_rope(shape, from, row);
}

void store_fp8_f32(const RowShape& shape, const float* row, std::byte* to) {
  std::array<float, 128> values;
  std::array<std::uint8_t, 128> codes;
  for (std::int64_t i = 0; i < shape.codes(); i += 128) {
    std::copy_n(row + i, 128, values.data());
    const float scale = e8m0_to_f32(ref::quantise_e4m3_block(values.data(), 128, codes.data()));
    std::memcpy(to + i, codes.data(), codes.size());
    std::memcpy(to + shape.scales_at() + i / 32, &scale, sizeof(scale));
  }
  store_rope(shape, row, to);
}

void load_fp8_f32(const RowShape& shape, const std::byte* from, float* row) {
  for (std::int64_t i = 0; i < shape.codes(); ++i) {
    float scale;
    std::memcpy(&scale, from + shape.scales_at() + i / 128 * 4, sizeof(scale));
    row[i] = e4m3_to_f32(std::to_integer<std::uint8_t>(from[i])) * scale;
  }
  load_rope(shape, from, row);
}

// Where group g of row i of a tile lies, and the scale of its block b.
std::int64_t group_at(std::int64_t g, std::int64_t i) {
  return (g * kTileRows + i) * (kGroupCodes / 2);
}
std::int64_t tile_scale_at(const RowShape& shape, std::int64_t b, std::int64_t i) {
  return kTileRows * (shape.dim / 2) + b * kTileRows + i;
}

void store_fp4(const RowShape& shape, const float* row, std::byte* tile, std::int64_t i) {
  std::array<float, 32> values;
  std::array<std::uint8_t, 32> codes;
  for (std::int64_t b = 0; b < shape.dim / 32; ++b) {
    std::copy_n(row + b * 32, 32, values.data());
    tile[tile_scale_at(shape, b, i)] = std::byte{ref::quantise_e2m1_block(values.data(), 32, codes.data())};
    for (std::int64_t k = 0; k < 32; k += 2) {
      const auto at = static_cast<std::size_t>(k);
      tile[group_at((b * 32 + k) / kGroupCodes, i) + k % kGroupCodes / 2] =
          std::byte{static_cast<std::uint8_t>(codes[at] | codes[at + 1] << 4)};
    }
  }
}

void load_fp4(const RowShape& shape, const std::byte* tile, std::int64_t i, float* row) {
  for (std::int64_t k = 0; k < shape.dim; k += 2) {
    const float scale = e8m0_to_f32(std::to_integer<std::uint8_t>(tile[tile_scale_at(shape, k / 32, i)]));
    const auto pair = std::to_integer<std::uint8_t>(tile[group_at(k / kGroupCodes, i) + k % kGroupCodes / 2]);
    row[k] = e2m1_to_f32(pair & 15) * scale;
    row[k + 1] = e2m1_to_f32(pair >> 4) * scale;
  }
}

}  // namespace

void store_row(const RowShape& shape, const float* row, std::byte* rows, std::int64_t i) {
  switch (shape.format) {
    case RowFormat::f32:
      std::memcpy(rows + i * shape.bytes(), row, static_cast<std::size_t>(shape.bytes()));
      break;
    case RowFormat::fp8_bf16:
      store_fp8_bf16(shape, row, rows + i * shape.bytes());
      break;
    case RowFormat::fp8_f32:
      store_fp8_f32(shape, row, rows + i * shape.bytes());
      break;
    case RowFormat::fp4_tiles:
      store_fp4(shape, row, rows + i / kTileRows * shape.tile_bytes(), i % kTileRows);
      break;
  }
}

void load_row(const RowShape& shape, const std::byte* rows, std::int64_t i, float* row) {
  switch (shape.format) {
    case RowFormat::f32:
      std::memcpy(row, rows + i * shape.bytes(), static_cast<std::size_t>(shape.bytes()));
      break;
    case RowFormat::fp8_bf16:
      load_fp8_bf16(shape, rows + i * shape.bytes(), row);
      break;
    case RowFormat::fp8_f32:
      load_fp8_f32(shape, rows + i * shape.bytes(), row);
      break;
    case RowFormat::fp4_tiles:
      load_fp4(shape, rows + i / kTileRows * shape.tile_bytes(), i % kTileRows, row);
      break;
  }
}

}  // namespace hadal
