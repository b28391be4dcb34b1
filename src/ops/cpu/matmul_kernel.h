// The inner part of matrix products (train/matmul.h): packing an operand into panels, and one tile of c from
// a panel of each.
//
// An operand is packed in depth blocks of kMatmulDepth: [depth block][panel][unit][row of the panel]. A unit
// is what one 32-bit word holds of a row: a float, or two neighbouring BF16 numbers, the earlier one low.
// Missing rows and a missing second number are zero.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hadal::cpu {

inline constexpr std::int64_t kMatmulDepth = 256;

// rows [row_begin, row_begin + rows) by depth [k_begin, k_begin + depth) of an operand: element (r, k) is
// x[r * stride + k] or, transposed, x[k * stride + r].
struct MatmulPanel {
  const float* x = nullptr;
  std::int64_t stride = 0;
  bool transposed = false;
  std::int64_t row_begin = 0, rows = 0;
  std::int64_t k_begin = 0, depth = 0;
};

struct MatmulKernel {
  std::int64_t a_width;     // rows of a panel of a
  std::int64_t b_width;     // columns of a panel of b
  std::int64_t unit_depth;  // numbers in a unit
  void (*pack_a)(const MatmulPanel& panel, std::uint32_t* out);
  void (*pack_b)(const MatmulPanel& panel, std::uint32_t* out);
  // c [m, n] (+)= a b over `units`, m <= a_width, n <= b_width.
  void (*multiply)(const std::uint32_t* a, const std::uint32_t* b, std::int64_t units, std::int64_t m,
                   std::int64_t n, float* c, std::int64_t c_stride, bool accumulate);
  // c [m, n] = scale c + add_scale add, both with c's stride, m and n likewise.
  void (*combine)(float scale, float add_scale, const float* add, std::int64_t m, std::int64_t n, float* c,
                  std::int64_t c_stride);

  std::int64_t units(std::int64_t depth) const { return (depth + unit_depth - 1) / unit_depth; }
};

// The best of this machine. bf16: operands are rounded to BF16, whether or not the machine multiplies such.
const MatmulKernel& matmul_kernel(bool bf16);

namespace avx2 {
const MatmulKernel& matmul(bool bf16);
}
namespace avx512 {
const MatmulKernel& matmul_f32();
}
namespace avx512bf16 {
const MatmulKernel& matmul_bf16();
}

}  // namespace hadal::cpu
