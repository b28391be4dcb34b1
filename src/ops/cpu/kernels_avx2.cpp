// AVX2 with FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "base/buffer.h"
#include "base/huge_pages.h"
#include "ops/attention_rows.h"
#include "ops/cpu/int8_tiles.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

HADAL_TARGET_BEGIN("avx2,fma,f16c")
namespace hadal::cpu::avx2 {
namespace {

#include "ops/cpu/avx2_vectors.inc"

// At most 4 * 96 * 48 in 16 bits.
inline __m256i dot8_half(__m256i sum, __m256i a0, __m256i b0, __m256i a1, __m256i b1) {
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a0, b0), _mm256_maddubs_epi16(a1, b1));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Ints dot8(Ints sum, Ints a0, Ints b0, Ints a1, Ints b1) {
  return {dot8_half(sum.lo, a0.lo, b0.lo, a1.lo, b1.lo), dot8_half(sum.hi, a0.hi, b0.hi, a1.hi, b1.hi)};
}

// The sign of a moves to b, so that two products stay within 2 * 127^2 in 16 bits.
inline __m256i tile_dot_half(__m256i sum, __m256i a, __m256i b) {
  const __m256i codes = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(b, codes));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
constexpr bool kTileOffset = false;
inline Ints tile_dot(Ints sum, Ints a, Ints b) {
  return {tile_dot_half(sum.lo, a.lo, b.lo), tile_dot_half(sum.hi, a.hi, b.hi)};
}

// clang-format off
#include "ops/cpu/kernels.inc"
#include "ops/cpu/int8_bytes.inc"
// clang-format on

}  // namespace

void use_int8_kernels(Kernels& table) {
  table.round_input_int8 = int8::round_input;
  table.gemm_int8 = int8::gemm;
}

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = kernel_table("avx2");
    use_int8_kernels(table);
    return table;
  }();
  return kTable;
}

}  // namespace hadal::cpu::avx2
HADAL_TARGET_END

namespace hadal::cpu::avx2 {
bool supported() {
  // Every processor with AVX2 has F16C, which clang 14 cannot ask for.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
}  // namespace hadal::cpu::avx2

#endif
