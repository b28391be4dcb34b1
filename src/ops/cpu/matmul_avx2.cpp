// Matrix products with AVX2 and FMA: a word is a float, rounded to BF16 when it is packed if that is wanted.
// The product of two such is exact in float32.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "ops/cpu/matmul_kernel.h"
#include "ops/cpu/target.h"

HADAL_TARGET_BEGIN("avx2,fma,f16c")
namespace hadal::cpu::avx2 {
namespace {

constexpr std::int64_t kRows = 6;  // 12 accumulators, two registers of b, one of a
constexpr std::int64_t kColumns = 16;
constexpr std::int64_t kLanes = 8;

// The first n lanes.
inline __m256i first(std::int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::clamp<std::int64_t>(n, 0, kLanes))),
                            lanes);
}

// To the nearest, ties to even; a NaN stays one.
template <bool kBf16>
inline __m256 rounded(__m256 x) {
  if (!kBf16) return x;
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), is_nan);
  return _mm256_and_ps(chosen, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000U))));
}

// Lane j of row i becomes lane i of row j.
inline void transpose(__m256* r) {
  __m256 t[8];
  HADAL_UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  HADAL_UNROLL for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  HADAL_UNROLL for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  HADAL_UNROLL for (int i = 0; i < 8; ++i) r[i] = t[i];
}

// Eight rows (or as many as there are) of a panel of `width`, from its row `at` on.
template <bool kBf16>
inline void pack_rows(const MatmulPanel& p, std::int64_t width, std::int64_t at, float* out) {
  const std::int64_t rows = std::min(kLanes, p.rows - at);
  const __m256i lanes = first(width - at);
  const float* x = p.x + (p.row_begin + at) * p.stride + p.k_begin;
  for (std::int64_t k = 0; k < p.depth; k += kLanes) {
    const std::int64_t n = std::min(kLanes, p.depth - k);
    const __m256i there = first(n);
    __m256 words[8];
    for (std::int64_t r = 0; r < kLanes; ++r)
      words[r] = r < rows ? _mm256_maskload_ps(x + r * p.stride + k, there) : _mm256_setzero_ps();
    transpose(words);
    for (std::int64_t i = 0; i < n; ++i)
      _mm256_maskstore_ps(out + (k + i) * width + at, lanes, rounded<kBf16>(words[i]));
  }
}

template <bool kBf16, std::int64_t kWidth>
void pack(const MatmulPanel& p, std::uint32_t* words) {
  auto* const out = reinterpret_cast<float*>(words);
  for (std::int64_t at = 0; at < kWidth; at += kLanes) {
    if (!p.transposed) {
      pack_rows<kBf16>(p, kWidth, at, out);
      continue;
    }
    const float* x = p.x + p.k_begin * p.stride + p.row_begin + at;
    const __m256i there = first(p.rows - at), lanes = first(kWidth - at);
    for (std::int64_t k = 0; k < p.depth; ++k) {
      const __m256 row = _mm256_maskload_ps(x + k * p.stride, there);
      _mm256_maskstore_ps(out + k * kWidth + at, lanes, rounded<kBf16>(row));
    }
  }
}

// V vectors of columns: the last panel may have no more than one.
template <int M, int V>
void tile(const float* a, const float* b, std::int64_t units, std::int64_t n, float* c, std::int64_t c_stride,
          bool accumulate) {
  __m256 sum[M][V];
  HADAL_UNROLL for (int i = 0; i < M; ++i) {
    HADAL_UNROLL for (int v = 0; v < V; ++v) sum[i][v] = _mm256_setzero_ps();
  }
  for (std::int64_t u = 0; u < units; ++u) {
    __m256 right[V];
    HADAL_UNROLL for (int v = 0; v < V; ++v) right[v] = _mm256_loadu_ps(b + u * kColumns + v * kLanes);
    HADAL_UNROLL for (int i = 0; i < M; ++i) {
      const __m256 x = _mm256_broadcast_ss(a + u * kRows + i);
      HADAL_UNROLL for (int v = 0; v < V; ++v) sum[i][v] = _mm256_fmadd_ps(x, right[v], sum[i][v]);
    }
  }
  HADAL_UNROLL for (int i = 0; i < M; ++i) {
    HADAL_UNROLL for (int v = 0; v < V; ++v) {
      const __m256i there = first(n - v * kLanes);
      float* to = c + i * c_stride + v * kLanes;
      if (accumulate) sum[i][v] = _mm256_add_ps(_mm256_maskload_ps(to, there), sum[i][v]);
      _mm256_maskstore_ps(to, there, sum[i][v]);
    }
  }
}

template <int V>
void multiply_wide(const float* a, const float* b, std::int64_t units, std::int64_t m, std::int64_t n,
                   float* c, std::int64_t c_stride, bool accumulate) {
  using Tile = void (*)(const float*, const float*, std::int64_t, std::int64_t, float*, std::int64_t, bool);
  static constexpr Tile kTiles[kRows] = {tile<1, V>, tile<2, V>, tile<3, V>,
                                         tile<4, V>, tile<5, V>, tile<6, V>};
  kTiles[m - 1](a, b, units, n, c, c_stride, accumulate);
}

void multiply(const std::uint32_t* a, const std::uint32_t* b, std::int64_t units, std::int64_t m,
              std::int64_t n, float* c, std::int64_t c_stride, bool accumulate) {
  (n <= kLanes ? multiply_wide<1> : multiply_wide<2>)(reinterpret_cast<const float*>(a),
                                                      reinterpret_cast<const float*>(b), units, m, n, c,
                                                      c_stride, accumulate);
}

void combine(float scale, float add_scale, const float* add, std::int64_t m, std::int64_t n, float* c,
             std::int64_t c_stride) {
  const __m256 s = _mm256_set1_ps(scale), t = _mm256_set1_ps(add_scale);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; j += kLanes) {
      const __m256i there = first(n - j);
      float* to = c + i * c_stride + j;
      const __m256 sum = _mm256_mul_ps(s, _mm256_maskload_ps(to, there));
      const __m256 other = _mm256_maskload_ps(add + i * c_stride + j, there);
      _mm256_maskstore_ps(to, there, _mm256_fmadd_ps(t, other, sum));
    }
  }
}

template <bool kBf16>
constexpr MatmulKernel kKernel{kRows,    kColumns, 1, pack<kBf16, kRows>, pack<kBf16, kColumns>,
                               multiply, combine};

}  // namespace
const MatmulKernel& matmul(bool bf16) {
  return bf16 ? kKernel<true> : kKernel<false>;
}
}  // namespace hadal::cpu::avx2
HADAL_TARGET_END

#endif
