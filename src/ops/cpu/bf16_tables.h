// Look-up tables that turn E4M3 and E2M1 codes into BF16 by byte and word permutes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/kernels.h"
#include "tensor/codec.h"

namespace hadal::cpu::avx512bf16 {

// For every E8M0 scale b the BF16 numbers e4m3(code) * 2^(b-127) of the 128 signless codes, split in low and
// high bytes for byte permutes. A matrix uses a few neighbouring scales, so what it needs stays in the
// first-level cache.
struct alignas(64) Tables {
  std::uint8_t e4m3[256][2][128];
  std::uint16_t e2m1[32];  // unscaled, twice, since the permute reads five index bits

  Tables() {
    for (unsigned b = 0; b < 256; ++b) {
      const float scale = b < kLeastScale ? 0 : e8m0_to_f32(static_cast<std::uint8_t>(b));
      for (unsigned code = 0; code < 128; ++code) {
        const std::uint16_t value = f32_to_bf16(e4m3_to_f32(static_cast<std::uint8_t>(code)) * scale);
        e4m3[b][0][code] = static_cast<std::uint8_t>(value & 0xff);
        e4m3[b][1][code] = static_cast<std::uint8_t>(value >> 8);
      }
    }
    for (unsigned code = 0; code < 32; ++code)
      e2m1[code] = f32_to_bf16(e2m1_to_f32(static_cast<std::uint8_t>(code & 15)));
  }
};

inline const Tables& tables() {
  static const Tables kTables;
  return kTables;
}

// The order of 128 entries in a rounded input, so that FP4 unpacks by shifts: vector s, word j is entry 4j +
// s.
constexpr std::int64_t entry_of(std::int64_t vector, std::int64_t word) {
  return 4 * word + vector;
}

// Which of 128 bytes go where so that the interleave of low and high bytes, which works inside 128-bit lanes
// (lower eight of each lane to one vector, upper eight to the next), leaves two vectors of words in the
// wanted order.
struct alignas(64) Interleave {
  std::uint8_t natural[2][64];  // vector i, word j: entry 32 i + j
  std::uint8_t split[2][64];    // vector s, word j: entry_of(s, j)
};
constexpr Interleave make_interleave() {
  Interleave table{};
  for (std::int64_t pair = 0; pair < 2; ++pair) {
    for (std::int64_t vector = 0; vector < 2; ++vector) {
      for (std::int64_t word = 0; word < 32; ++word) {
        const auto at = static_cast<std::size_t>(word / 8 * 16 + vector * 8 + word % 8);
        const auto p = static_cast<std::size_t>(pair);
        table.natural[p][at] = static_cast<std::uint8_t>(32 * (2 * pair + vector) + word);
        table.split[p][at] = static_cast<std::uint8_t>(entry_of(2 * pair + vector, word));
      }
    }
  }
  return table;
}
inline constexpr Interleave kInterleave = make_interleave();

}  // namespace hadal::cpu::avx512bf16
