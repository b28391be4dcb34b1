// AVX2 with FMA and F16C: a vector is two registers.
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
#include "ops/cpu/kernels.h"
#include "ops/cpu/target.h"
#include "tensor/codec.h"

HADAL_TARGET_BEGIN("avx2,fma,f16c")
namespace hadal::cpu::avx2 {
namespace {

struct Vec {
  __m256 lo, hi;
};

inline Vec zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
inline Vec set1(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Vec load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline Vec add(Vec a, Vec b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Vec mul(Vec a, Vec b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Vec div(Vec a, Vec b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec round(Vec a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
// a * 2^n for integral n in [-126, 127]
inline __m256 scale_half(__m256 a, __m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline Vec scale_by_power(Vec a, Vec n) {
  return {scale_half(a.lo, n.lo), scale_half(a.hi, n.hi)};
}

inline __m256 widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline __m128i load_half(const std::byte* p, int half) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + half);
}
inline Vec load_bf16(const std::byte* p) {
  return {widen_bf16(load_half(p, 0)), widen_bf16(load_half(p, 1))};
}
inline Vec load_f16(const std::byte* p) {
  return {_mm256_cvtph_ps(load_half(p, 0)), _mm256_cvtph_ps(load_half(p, 1))};
}
// The E4M3 fields moved to float32's place are 2^-120 of the value, subnormals included.
inline __m256 widen_e4m3(__m128i codes) {
  const __m256i x = _mm256_cvtepu8_epi32(codes);
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x80)), 24);
  const __m256i rest = _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x7f)), 20);
  return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_or_si256(sign, rest)), _mm256_set1_ps(0x1p120F));
}
inline Vec load_e4m3(const std::byte* p) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {widen_e4m3(codes), widen_e4m3(_mm_srli_si128(codes, 8))};
}
// 16 values from 8 bytes, even index in the low nibble: twice the value is a small integer.
inline __m256 widen_doubled(__m128i doubled) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(doubled)), _mm256_set1_ps(0.5F));
}
inline Vec load_e2m1(const std::byte* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
  const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
  const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
  const __m128i doubled = _mm_shuffle_epi8(table, _mm_unpacklo_epi8(low, high));
  return {widen_doubled(doubled), widen_doubled(_mm_srli_si128(doubled, 8))};
}

constexpr int kVectors = 8;  // that the registers hold

#include "ops/cpu/kernels.inc"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels kTable = kernel_table("avx2");
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
