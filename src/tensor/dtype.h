// The element types of the published checkpoints, with the names that safetensors gives them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace hadal {

enum class DType : std::uint8_t {
  f32,
  f16,
  bf16,
  f8_e4m3,  // 1 sign, 4 exponent (bias 7), 3 mantissa bits; max 448, no infinity, NaN = 0x7f and 0xff
  f8_e8m0,  // a power of two: byte b is 2^(b-127)
  i8,       // in published checkpoints: two packed FP4 (E2M1) values, even index in the low nibble
  i32,
  i64,
  u8,
};

constexpr int kDTypeCount = 9;

constexpr std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::f8_e4m3:
    case DType::f8_e8m0:
    case DType::i8:
    case DType::u8:
      return 1;
    case DType::i64:
      return 8;
  }
  return 0;
}

// "F32", "BF16", "F8_E4M3", ... as in a safetensors header.
std::string_view to_string(DType dtype);
std::optional<DType> dtype_from_string(std::string_view name);

}  // namespace hadal
