#include "tensor/finite.h"

#include <algorithm>
#include <cstring>

namespace hadal {
namespace {

// The first of n words that `bad` accepts; -1 if there is none. A block is first looked at as a whole, in a
// loop that the compiler turns into vectors: reading memory is what it costs.
template <class Word, class Bad>
std::int64_t find_first(const std::byte* data, std::int64_t n, Bad bad) {
  constexpr std::int64_t kBlock = 4096 / sizeof(Word);
  const auto word = [&](std::int64_t i) {
    Word w;
    std::memcpy(&w, data + i * static_cast<std::int64_t>(sizeof(Word)), sizeof(Word));
    return w;
  };
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, n);
    Word any = 0;
    for (std::int64_t i = begin; i < end; ++i) any = static_cast<Word>(any | (bad(word(i)) ? 1 : 0));
    for (std::int64_t i = begin; any != 0; ++i) {
      if (bad(word(i))) return i;
    }
  }
  return -1;
}

// IEEE 754 keeps infinities and NaN in the largest exponent, E4M3 NaN alone in the last code.
template <class Word, Word kMask>
std::int64_t find_masked(const std::byte* data, std::int64_t n) {
  return find_first<Word>(data, n, [](Word w) { return (w & kMask) == kMask; });
}

}  // namespace

std::int64_t first_not_finite(DType dtype, const std::byte* data, std::int64_t n) {
  switch (dtype) {
    case DType::f32:
      return find_masked<std::uint32_t, 0x7f800000>(data, n);
    case DType::f16:
      return find_masked<std::uint16_t, 0x7c00>(data, n);
    case DType::bf16:
      return find_masked<std::uint16_t, 0x7f80>(data, n);
    case DType::f8_e4m3:
      return find_masked<std::uint8_t, 0x7f>(data, n);
    case DType::f8_e8m0:
      return find_masked<std::uint8_t, 0xff>(data, n);
    case DType::i8:
    case DType::i32:
    case DType::i64:
    case DType::u8:
      return -1;
  }
  return -1;
}

std::int64_t first_scale_above(std::uint8_t most, const std::uint8_t* scales, std::int64_t n) {
  return find_first<std::uint8_t>(reinterpret_cast<const std::byte*>(scales), n,
                                  [most](std::uint8_t b) { return b > most; });
}

}  // namespace hadal
