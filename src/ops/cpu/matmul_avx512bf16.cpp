// Matrix products in BF16 with AVX-512: a word is a pair of numbers, and vdpbf16ps adds both products of a
// pair to a float32 sum, the odd one first (tests/ops/vdpbf16ps_test.cpp). It takes subnormals for zero.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "ops/cpu/matmul_kernel.h"
#include "ops/cpu/target.h"

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
namespace hadal::cpu::avx512bf16 {
namespace {

constexpr std::int64_t kUnit = 2;

// The BF16 roundings of low in the lower and of high in the upper half.
inline __m512i to_bf16(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}
inline __m512i load_words(const float* p, std::int64_t numbers) {
  if (numbers >= 32) return to_bf16(_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16));
  const std::uint32_t mask = (1U << numbers) - 1;
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
  return to_bf16(low, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), p + 16));
}
inline __m512i pair_words(const float* p, std::int64_t stride, std::int64_t numbers, __mmask16 there) {
  const __m512 even = _mm512_maskz_loadu_ps(there, p);
  const __m512 odd = numbers > 1 ? _mm512_maskz_loadu_ps(there, p + stride) : _mm512_setzero_ps();
  // Words 0, 16, 1, 17, ...
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                              23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, to_bf16(even, odd));
}
inline __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

#include "ops/cpu/matmul_avx512.inc"

constexpr MatmulKernel kKernel{kRows, kColumns, kUnit, pack<kRows>, pack<kColumns>, multiply, combine};

}  // namespace
const MatmulKernel& matmul_bf16() {
  return kKernel;
}
}  // namespace hadal::cpu::avx512bf16
HADAL_TARGET_END

#endif
