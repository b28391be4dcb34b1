// The weights of linear maps, wherever they are stored and in whichever format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hadal {

// y = W x with W [out, in], row-major. Quantised formats carry one E8M0 scale per block:
// fp8: [ceil(out/128), ceil(in/128)], fp4: [out, in/32], two values per byte along `in`, even one low.
struct Linear {
  enum class Format : std::uint8_t { f32, f16, bf16, fp8, fp4 };

  std::int64_t out = 0;
  std::int64_t in = 0;
  Format format = Format::f32;
  const std::byte* weight = nullptr;  // not aligned
  const std::uint8_t* scale = nullptr;
  std::string_view name = {};  // of the parameter in every layer alike, "attn.wq_a"; for profiles

  bool quantised() const { return format == Format::fp8 || format == Format::fp4; }
  // Bytes of one row of W.
  std::int64_t row_bytes() const {
    switch (format) {
      case Format::f32:
        return in * 4;
      case Format::f16:
      case Format::bf16:
        return in * 2;
      case Format::fp8:
        return in;
      case Format::fp4:
        return in / 2;
    }
    return 0;
  }
};

inline bool is_quantised(Linear::Format format) {
  return format == Linear::Format::fp8 || format == Linear::Format::fp4;
}

// What happens to the input of a linear; to that of one with quantised weights only, but for `bf16`.
enum class InputRounding : std::uint8_t {
  none,
  e4m3,  // `official`: E4M3 with one power-of-two scale per 1x128
  int8,  // `int8`: integers with one scale per 1x32; FP8 weights become integers too
  bf16,  // `int8`, in front of a compressor: BF16, whatever the weights
};

// E8M0 bytes under this (2^-63) count as zero in kernels that scale sums: a block without a value has 2^-126.
inline constexpr std::uint8_t kLeastScale = 64;

// A SwiGLU feed-forward network of inner width I.
struct Expert {
  Linear w1, w2, w3;  // [I, d], [d, I], [I, d]

  bool has_weights() const { return w1.weight != nullptr; }
};

}  // namespace hadal
