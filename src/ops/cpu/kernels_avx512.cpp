// AVX-512 (F, BW, VL, DQ): a vector is one register.
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
#include "ops/attention_rows.h"
#include "ops/cpu/int8_tiles.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/target.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace hadal::cpu::avx512 {
namespace {

struct Vec {
  __m512 v;
};

inline Vec zero() {
  return {_mm512_setzero_ps()};
}
inline Vec set1(float x) {
  return {_mm512_set1_ps(x)};
}
inline Vec load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline void store(float* p, Vec a) {
  _mm512_storeu_ps(p, a.v);
}
inline Vec add(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec sub(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vec mul(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec div(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec sqrt(Vec a) {
  return {_mm512_sqrt_ps(a.v)};
}
// Lane i is lane i ^ distance of a.
template <int kDistance>
inline Vec exchange(Vec a) {
  if constexpr (kDistance == 1) return {_mm512_permute_ps(a.v, 0xb1)};
  if constexpr (kDistance == 2) return {_mm512_permute_ps(a.v, 0x4e)};
  if constexpr (kDistance == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  if constexpr (kDistance == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
}
// The power of two at or below |a|, 0 below 2^-126.
inline Vec leading_power(Vec a) {
  return {_mm512_and_ps(a.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)))};
}
// |a| with the sign of b
inline Vec copy_sign(Vec a, Vec b) {
  const __m512i bits = _mm512_ternarylogic_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v),
                                                 _mm512_set1_epi32(INT32_MIN), 0xd8);
  return {_mm512_castsi512_ps(bits)};
}
// a * 2^n for integral n
inline Vec scale_by_power(Vec a, Vec n) {
  return {_mm512_scalef_ps(a.v, n.v)};
}

inline Vec load_bf16(const std::byte* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
inline Vec load_f16(const std::byte* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// The E4M3 fields moved to float16's place are 2^-8 of the value. Its subnormals are float16's, which the
// conversion reads at full speed; moved to float32's place at once they would stall every multiplication.
inline Vec load_e4m3(const std::byte* p) {
  const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half =
      _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16(static_cast<short>(0xbf80)));
  return {_mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(0x1p8F))};
}
// 16 values from 8 bytes, even index in the low nibble.
inline Vec load_e2m1(const std::byte* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
  const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
  const __m512i codes = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high));
  const __m512 table = _mm512_setr_ps(0, .5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -.5F, -1, -1.5F, -2, -3, -4, -6);
  return {_mm512_permutexvar_ps(codes, table)};
}

using Ints = __m512i;
constexpr std::int64_t kTilesAtOnce = 4;
inline Ints ints(std::int32_t i) {
  return _mm512_set1_epi32(i);
}
inline Ints load_ints(const void* p) {
  return _mm512_loadu_si512(p);
}
// At most 4 * 96 * 48 in 16 bits.
inline Ints dot8(Ints sum, Ints a0, Ints b0, Ints a1, Ints b1) {
  const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(a0, b0), _mm512_maddubs_epi16(a1, b1));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#include "ops/cpu/index_avx512.inc"
constexpr int kVectors = 32;  // that the registers hold

#include "ops/cpu/kernels.inc"

}  // namespace

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = kernel_table("avx512");
    avx2::use_int8_kernels(table);
    if (avx512vnni::supported()) avx512vnni::install(table);
    return table;
  }();
  return kTable;
}

}  // namespace hadal::cpu::avx512
HADAL_TARGET_END

namespace hadal::cpu::avx512 {
bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}
}  // namespace hadal::cpu::avx512

#endif
