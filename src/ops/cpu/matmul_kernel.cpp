#include "ops/cpu/matmul_kernel.h"

#include <bit>

#include "ops/cpu/kernels.h"
#include "tensor/codec.h"

namespace hadal::cpu {
namespace {

constexpr std::int64_t kRows = 4, kColumns = 16;

template <bool kBf16, std::int64_t kWidth>
void pack(const MatmulPanel& p, std::uint32_t* out) {
  const std::int64_t row_step = p.transposed ? 1 : p.stride, k_step = p.transposed ? p.stride : 1;
  for (std::int64_t k = p.k_begin; k < p.k_begin + p.depth; ++k) {
    for (std::int64_t r = 0; r < kWidth; ++r) {
      float x = r < p.rows ? p.x[(p.row_begin + r) * row_step + k * k_step] : 0.0F;
      if (kBf16) x = bf16_to_f32(f32_to_bf16(x));
      *out++ = std::bit_cast<std::uint32_t>(x);
    }
  }
}

// The accumulators stay in registers whatever the compiler makes of the inner loop: it has constant bounds.
void multiply(const std::uint32_t* a, const std::uint32_t* b, std::int64_t units, std::int64_t m,
              std::int64_t n, float* c, std::int64_t c_stride, bool accumulate) {
  float sum[kRows][kColumns] = {};
  for (std::int64_t u = 0; u < units; ++u) {
    for (std::int64_t i = 0; i < kRows; ++i) {
      const float x = std::bit_cast<float>(a[u * kRows + i]);
      for (std::int64_t j = 0; j < kColumns; ++j) sum[i][j] += x * std::bit_cast<float>(b[u * kColumns + j]);
    }
  }
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      float& to = c[i * c_stride + j];
      to = accumulate ? to + sum[i][j] : sum[i][j];
    }
  }
}

void combine(float scale, float add_scale, const float* add, std::int64_t m, std::int64_t n, float* c,
             std::int64_t c_stride) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j)
      c[i * c_stride + j] = scale * c[i * c_stride + j] + add_scale * add[i * c_stride + j];
  }
}

template <bool kBf16>
constexpr MatmulKernel kPortable{kRows,    kColumns, 1, pack<kBf16, kRows>, pack<kBf16, kColumns>,
                                 multiply, combine};

}  // namespace

const MatmulKernel& matmul_kernel(bool bf16) {
#if defined(__x86_64__)
  if (bf16 && avx512bf16::supported()) return avx512bf16::matmul_bf16();
  if (!bf16 && avx512::supported()) return avx512::matmul_f32();
  if (avx2::supported()) return avx2::matmul(bf16);
#endif
  return bf16 ? kPortable<true> : kPortable<false>;
}

}  // namespace hadal::cpu
