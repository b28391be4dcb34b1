// Matrix products in float32 with AVX-512: a word is a float.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "ops/cpu/matmul_kernel.h"
#include "ops/cpu/target.h"

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
namespace hadal::cpu::avx512 {
namespace {

constexpr std::int64_t kUnit = 1;

inline __m512i load_words(const float* p, std::int64_t numbers) {
  const auto mask = static_cast<__mmask16>(numbers >= 16 ? 0xffffU : (1U << numbers) - 1);
  return _mm512_maskz_loadu_epi32(mask, p);
}
inline __m512i pair_words(const float* p, std::int64_t /*stride*/, std::int64_t /*numbers*/,
                          __mmask16 there) {
  return _mm512_maskz_loadu_epi32(there, p);
}
inline __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}

#include "ops/cpu/matmul_avx512.inc"

constexpr MatmulKernel kKernel{kRows, kColumns, kUnit, pack<kRows>, pack<kColumns>, multiply, combine};

}  // namespace
const MatmulKernel& matmul_f32() {
  return kKernel;
}
}  // namespace hadal::cpu::avx512
HADAL_TARGET_END

#endif
