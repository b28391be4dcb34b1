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
#include "ops/cpu/int8_tiles.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/target.h"
#include "ops/ref/ref.h"
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
inline Vec sub(Vec a, Vec b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
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
inline Vec sqrt(Vec a) {
  return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
// Lane i is lane i ^ distance of a.
template <int kDistance>
inline Vec exchange(Vec a) {
  if constexpr (kDistance == 1) return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
  if constexpr (kDistance == 2) return {_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)};
  if constexpr (kDistance == 4)
    return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
  if constexpr (kDistance == 8) return {a.hi, a.lo};
}
// The power of two at or below |a|, 0 below 2^-126.
inline Vec leading_power(Vec a) {
  const __m256 exponent = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
  return {_mm256_and_ps(a.lo, exponent), _mm256_and_ps(a.hi, exponent)};
}
// |a| with the sign of b
inline Vec copy_sign(Vec a, Vec b) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  return {_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, b.lo)),
          _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, b.hi))};
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

struct Ints {
  __m256i lo, hi;
};
constexpr std::int64_t kTilesAtOnce = 1;
inline Ints ints(std::int32_t i) {
  return {_mm256_set1_epi32(i), _mm256_set1_epi32(i)};
}
inline Ints load_ints(const void* p) {
  const auto* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
// At most 4 * 96 * 48 in 16 bits.
inline __m256i dot8_half(__m256i sum, __m256i a0, __m256i b0, __m256i a1, __m256i b1) {
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a0, b0), _mm256_maddubs_epi16(a1, b1));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Ints dot8(Ints sum, Ints a0, Ints b0, Ints a1, Ints b1) {
  return {dot8_half(sum.lo, a0.lo, b0.lo, a1.lo, b1.lo), dot8_half(sum.hi, a0.hi, b0.hi, a1.hi, b1.hi)};
}
inline Vec to_floats(Ints a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
inline Vec relu(Vec a) {
  return max(a, zero());  // of a NaN and a number the second
}
inline Vec fused(Vec a, Vec b, Vec c) {
  return fma(a, b, c);
}
inline void unpack_group(const std::byte* from, Ints shift, Ints bias, std::uint8_t* low,
                         std::uint8_t* high) {
  // 12 + twice the value of a code
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m256i nibble = _mm256_set1_epi8(15);
  const Ints bytes = load_ints(from);
  const auto put = [&](std::uint8_t* to, __m256i codes, __m256i by, __m256i plus) {
    const __m256i value = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
    // at most 96: no byte meets the next
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi8(_mm256_sllv_epi32(value, by), plus));
  };
  put(low, bytes.lo, shift.lo, bias.lo);
  put(low + 32, bytes.hi, shift.hi, bias.hi);
  put(high, _mm256_srli_epi16(bytes.lo, 4), shift.lo, bias.lo);
  put(high + 32, _mm256_srli_epi16(bytes.hi, 4), shift.hi, bias.hi);
}
constexpr int kVectors = 8;  // that the registers hold

// clang-format off
#include "ops/cpu/kernels.inc"
#include "ops/cpu/int8_avx2.inc"
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
