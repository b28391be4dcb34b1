// AVX-512 with VNNI: linears of `int8` numerics (kernels.h has the order of their sums).
//
// vpdpbusd adds four products of an unsigned and a signed byte to each 32-bit lane, exactly here. The signed
// side is the input, the unsigned one the weight plus an offset (16 for FP4, whose doubled values reach 12,
// 128 for int8); the offset's share, -offset * sum(x), is where the sum begins.
//
// The input is a record per row and block of 512 entries of K (kernels.h: kPackedDepth; the last may be
// shorter): codes, their scales per 32, and both shares of the offsets, so that one pointer serves a token
// and all of it is near. Records are [dim / 512][rows].
//
// Up to kFused tokens meet FP4 rows as they are stored: a lane is 8 entries of one row, so four lanes make a
// block of 32, and four rows together shuffle into a vector of (block of a group, row). More tokens, and all
// of int8 tiles, run with a row a lane: 16 rows of FP4 are transposed into a panel of the layout of
// int8_tiles.h.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ops/cpu/int8_tiles.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"
#include "tensor/codec.h"

namespace hadal::cpu::avx512vnni {
namespace {

constexpr std::int64_t kGroup = 128;
constexpr std::int64_t kAhead = 3072;  // bytes of prefetch, over page ends
constexpr int kFused = 4;
constexpr int kTokens = 12;  // of a tile
constexpr std::int64_t kPanelTiles = 4;
constexpr int kLargestScale = 230;  // an E8M0 byte b whose 1.5 * 2^(23 + b - 128) is finite

// The record of a row for `here` entries of K from k on.
struct Record {
  std::int8_t* codes;  // [here]

  static constexpr std::int64_t bytes(std::int64_t here) { return here + here / 32 * 12; }
  static Record of(const Int8Input& x, std::int64_t rows, std::int64_t row, std::int64_t k,
                   std::int64_t here) {
    return {x.codes + bytes(k) * rows + row * bytes(here)};
  }
  float* scales(std::int64_t here) const { return reinterpret_cast<float*>(codes + here); }  // [here / 32]
  std::int32_t* offset16(std::int64_t here) const {
    return reinterpret_cast<std::int32_t*>(codes + here + here / 32 * 4);
  }
  std::int32_t* offset128(std::int64_t here) const {
    return reinterpret_cast<std::int32_t*>(codes + here + here / 32 * 8);
  }
};

}  // namespace
}  // namespace hadal::cpu::avx512vnni

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
namespace hadal::cpu::avx512vnni {
namespace {

// 2^(b-128), half the scale since codes are doubled, of E8M0 bytes in 32-bit lanes; 0 under kLeastScale.
inline __m512 half_scale(__m512i b) {
  return _mm512_castsi512_ps(
      _mm512_maskz_slli_epi32(_mm512_cmpge_epu32_mask(b, _mm512_set1_epi32(kLeastScale)),
                              _mm512_sub_epi32(b, _mm512_set1_epi32(1)), 23));
}
// Twice the value of each E2M1 code in the low nibbles, plus 16.
inline __m512i offset_values(__m512i codes) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
  return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}
inline __m512i high_nibbles(__m512i codes) {
  return _mm512_srli_epi16(codes, 4);
}

// Codes of 128 entries: 64 with even index, then 64 with odd; per 32 entries the scale and the offsets'
// shares.
void round_input_int8(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t rows, std::int64_t dim, const Int8Input& out) {
  const __m512i even_first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd_first = _mm512_add_epi32(even_first, _mm512_set1_epi32(1));
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t k = 0; k < dim; k += 32) {
      const float* from = x + row * x_stride + k;
      const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
      const float amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
      const bool something = amax > 1e-30F;  // ref::quantise_int8_block
      const __m512 inverse = _mm512_set1_ps(something ? 127 / amax : 0);
      const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)),
                    qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
      const std::int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
      const std::int64_t block = k / kPackedDepth * kPackedDepth, here = std::min(kPackedDepth, dim - block);
      const Record record = Record::of(out, rows, row, block, here);
      std::int8_t* codes = record.codes + (k - block) / kGroup * kGroup + k % kGroup / 2;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes),
                       _mm512_cvtepi32_epi8(_mm512_permutex2var_epi32(qa, even_first, qb)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 64),
                       _mm512_cvtepi32_epi8(_mm512_permutex2var_epi32(qa, odd_first, qb)));
      record.scales(here)[(k - block) / 32] = something ? amax / 127 : 0;
      record.offset16(here)[(k - block) / 32] = -16 * sum;
      record.offset128(here)[(k - block) / 32] = -128 * sum;
    }
  }
}

// Four rows' four E8M0 bytes per group, for groups 4g .. 4g+3, as scales in lanes (block, row).
inline void scales_of_rows(const std::uint8_t* const* row, std::int64_t group, std::int64_t groups,
                           __m512* out) {
  __m128i r[4];
  const auto mask = static_cast<__mmask16>(groups >= 4 ? 0xffff : (1 << (4 * groups)) - 1);
  for (int i = 0; i < 4; ++i) r[i] = _mm_maskz_loadu_epi8(mask, row[i] + 4 * group);
  const __m128i a = _mm_unpacklo_epi32(r[0], r[1]), b = _mm_unpacklo_epi32(r[2], r[3]);
  const __m128i c = _mm_unpackhi_epi32(r[0], r[1]), d = _mm_unpackhi_epi32(r[2], r[3]);
  const __m128i by_group[4] = {_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b), _mm_unpacklo_epi64(c, d),
                               _mm_unpackhi_epi64(c, d)};
  const __m128i block_major = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int i = 0; i < 4; ++i)
    out[i] = half_scale(_mm512_cvtepu8_epi32(_mm_shuffle_epi8(by_group[i], block_major)));
}

// T tokens against FP4 rows as they are stored, four rows and 512 entries at a time.
template <int T>
inline void multiply_fused(const GemmArgs& p) {
  const Linear& w = *p.weight;
  std::int64_t x_row[T];
  for (int t = 0; t < T; ++t) x_row[t] = p.input_row(t);
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  for (std::int64_t row = p.row_begin; row < p.row_end; row += 4) {
    const std::int64_t rows = std::min<std::int64_t>(4, p.row_end - row);
    const std::byte* bytes[4];
    const std::uint8_t* scale_bytes[4];
    for (std::int64_t r = 0; r < 4; ++r) {
      const std::int64_t real = row + std::min(r, rows - 1);
      bytes[r] = w.weight + real * (w.in / 2);
      scale_bytes[r] = w.scale + real * (w.in / 32);
    }
    __m512 chains[T];
    for (int t = 0; t < T; ++t) chains[t] = _mm512_setzero_ps();
    for (std::int64_t k = 0; k < w.in; k += kPackedDepth) {
      const std::int64_t here = std::min(kPackedDepth, w.in - k), groups = here / kGroup;
      const std::int8_t* x[T];
      const std::int32_t* offset[T];
      const float* x_scale[T];
      for (int t = 0; t < T; ++t) {
        const Record record = Record::of(*p.int8, p.packed_rows, x_row[t], k, here);
        x[t] = record.codes;
        offset[t] = record.offset16(here);
        x_scale[t] = record.scales(here);
      }
      // A lane is 8 entries of a row, four lanes a block of 32.
      __m512i dots[4][4][T];  // [group][row][t]
      for (int r = 0; r < 4; ++r) {
        const std::byte* from = bytes[r] + k / 2;
        for (std::int64_t g = 0; g < groups; ++g) {
          const __m512i codes = _mm512_loadu_si512(from + g * 64);
          // Four rows on. Four streams are more than the processor follows by itself, and into the second
          // level only: the first has too few places for lines under way.
          _mm_prefetch(reinterpret_cast<const char*>(from + g * 64) + 2 * w.in, _MM_HINT_T1);
          const __m512i even = offset_values(codes), odd = offset_values(high_nibbles(codes));
          for (int t = 0; t < T; ++t) {
            const std::int8_t* in = x[t] + g * kGroup;
            const __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, _mm512_loadu_si512(in));
            dots[g][r][t] = _mm512_dpbusd_epi32(sum, odd, _mm512_loadu_si512(in + 64));
          }
        }
      }
      __m512 scales[4];
      scales_of_rows(scale_bytes, k / kGroup, groups, scales);
      for (std::int64_t g = 0; g < groups; ++g) {
        for (int t = 0; t < T; ++t) {
          // Four rows by four lanes of every block, summed into (block, row).
          const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(dots[g][0][t], dots[g][1][t]),
                                              _mm512_unpackhi_epi32(dots[g][0][t], dots[g][1][t]));
          const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(dots[g][2][t], dots[g][3][t]),
                                              _mm512_unpackhi_epi32(dots[g][2][t], dots[g][3][t]));
          const __m512i dot = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
          const __m128i offsets = _mm_loadu_si128(reinterpret_cast<const __m128i*>(offset[t] + g * 4));
          const __m512i whole =
              _mm512_add_epi32(dot, _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(offsets)));
          const __m128 input_scales = _mm_loadu_ps(x_scale[t] + g * 4);
          const __m512 both =
              _mm512_mul_ps(scales[g], _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(input_scales)));
          chains[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), both, chains[t]);
        }
      }
    }
    const auto mask = static_cast<__mmask8>((1U << rows) - 1);
    for (int t = 0; t < T; ++t) {
      // Chains 0 + 2 and 1 + 3, then the two.
      const __m256 half =
          _mm256_add_ps(_mm512_castps512_ps256(chains[t]), _mm512_extractf32x8_ps(chains[t], 1));
      __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
      float* y = p.output(t) + row;
      if (p.accumulate) sum = _mm_add_ps(_mm_maskz_loadu_ps(mask, y), sum);
      _mm_mask_storeu_ps(y, mask, sum);
    }
  }
}

// 16 vectors of 16 dwords become each other's columns.
inline void transpose(__m512i* v) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // v[4 q + i], lane group l: column 4 l + i of rows 4 q .. 4 q + 3
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88),
                  b = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd),
                  d = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
    t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

inline __m512i broadcast_int(const std::int8_t* at) {
  std::int32_t value;
  std::memcpy(&value, at, 4);
  return _mm512_set1_epi32(value);
}
inline __m512 broadcast_float(const std::int8_t* at) {
  float value;
  std::memcpy(&value, at, 4);
  return _mm512_set1_ps(value);
}

// Where a tile's codes and scales are: FP4 transposed into a panel, or int8 as packed.
//
// Scales of FP4 are powers of two 2^e, so a dot needs no multiplication by them and no conversion: it is
// summed as an integer that begins at the bits of the float 1.5 * 2^(23+e), whose last place is 2^e, and
// what is left after a subtraction of that float is 2^e * dot. Both are exact, since |dot| < 2^22, and an
// integer addition and a subtraction run beside the pipes that multiply.
struct Fp4Tile {
  const std::uint8_t* codes;                     // [blocks of K][512]
  const float* anchor_rows;                      // [blocks of K][16]: 1.5 * 2^(23+e)
  static constexpr std::int64_t kOffsetsAt = 4;  // bytes behind the codes, per 32 entries
  const std::uint8_t* block(std::int64_t k, std::int64_t /*groups*/, std::int64_t at) const {
    return codes + (k / 32 + at) * 512;
  }
  struct Scale {
    __m512 anchor;
    __m512i start(const std::int8_t* offset) const {
      return _mm512_add_epi32(_mm512_castps_si512(anchor), broadcast_int(offset));
    }
    __m512 add(__m512 sum, __m512i dot, const std::int8_t* x_scale) const {
      return _mm512_fmadd_ps(_mm512_sub_ps(_mm512_castsi512_ps(dot), anchor), broadcast_float(x_scale), sum);
    }
  };
  Scale scale(std::int64_t k, std::int64_t /*groups*/, std::int64_t at) const {
    return {_mm512_load_ps(anchor_rows + (k / 32 + at) * 16)};
  }
};
struct Int8Tile {
  const std::byte* bytes;
  static constexpr std::int64_t kOffsetsAt = 8;
  const std::uint8_t* block(std::int64_t k, std::int64_t /*groups*/, std::int64_t at) const {
    return reinterpret_cast<const std::uint8_t*>(bytes + Int8Tiles::bytes(k) + at * Int8Tiles::kCodeBytes);
  }
  struct Scale {
    __m512 value;
    static __m512i start(const std::int8_t* offset) { return broadcast_int(offset); }
    __m512 add(__m512 sum, __m512i dot, const std::int8_t* x_scale) const {
      return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(value, broadcast_float(x_scale)), sum);
    }
  };
  Scale scale(std::int64_t k, std::int64_t groups, std::int64_t at) const {
    const std::byte* from =
        bytes + Int8Tiles::bytes(k) + groups * 4 * Int8Tiles::kCodeBytes + at * Int8Tiles::kScaleBytes;
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
};

// sum[lane] += w's four bytes of the lane . the four bytes at x. GCC 12 loads a broadcast by an instruction
// of its own, where the operand could do it, and the loads, of which there are about as many as
// multiplications, then take a tenth of the time.
inline __m512i dpbusd_broadcast(__m512i sum, __m512i w, const std::int8_t* x) {
#if defined(__clang__)
  std::int32_t four;
  std::memcpy(&four, x, 4);
  return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
#else
  typedef std::int32_t Four __attribute__((may_alias, aligned(1)));
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const Four*>(x)));
  return sum;
#endif
}

// T tokens against one chain of a tile's block of K: `here` entries from k on, whose records x are.
template <class Tile, int T>
inline void multiply_chain(const Tile& tile, std::int64_t k, std::int64_t here, std::int64_t chain,
                           const std::int8_t* const* x, float* sums) {
  const std::int64_t groups = here / kGroup;
  const std::int64_t scales_at = here, offsets_at = here + here / 32 * Tile::kOffsetsAt;
  __m512 sum[T];
  for (int t = 0; t < T; ++t) sum[t] = _mm512_load_ps(sums + t * 16);
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t at = chain * groups + group, block = group * 4 + chain;
    const std::uint8_t* codes = tile.block(k, groups, at);
    const typename Tile::Scale scale = tile.scale(k, groups, at);
    __m512i w[8];
    for (int i = 0; i < 8; ++i) w[i] = _mm512_loadu_si512(codes + i * 64);
    if constexpr (T <= 2) {
      for (int i = 0; i < 8; ++i)
        _mm_prefetch(reinterpret_cast<const char*>(codes) + kAhead + i * 64, _MM_HINT_T0);
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const std::int8_t* in = x[t] + group * kGroup + chain * 16;
      __m512i dot = scale.start(x[t] + offsets_at + block * 4);
      for (int i = 0; i < 4; ++i) dot = dpbusd_broadcast(dot, w[i], in + 4 * i);
      for (int i = 0; i < 4; ++i) dot = dpbusd_broadcast(dot, w[4 + i], in + 64 + 4 * i);
      sum[t] = scale.add(sum[t], dot, x[t] + scales_at + block * 4);
    }
  }
  for (int t = 0; t < T; ++t) _mm512_store_ps(sums + t * 16, sum[t]);
}

// Rows [row_begin, row_end), which lie in n_tiles tiles, of T tokens. A block of K of the tokens stays in the
// first-level cache while all tiles pass.
template <class Tile, int T>
inline void multiply_tiles(const GemmArgs& p, const Tile* tile, std::int64_t n_tiles, std::int64_t row_begin,
                           std::int64_t row_end, std::int64_t first_token) {
  const std::int64_t depth = p.weight->in;
  alignas(64) float sums[kPanelTiles][4][T][16];
  std::memset(sums, 0, static_cast<std::size_t>(n_tiles) * sizeof(sums[0]));
  std::int64_t x_row[T];
  for (int t = 0; t < T; ++t) x_row[t] = p.input_row(first_token + t);
  for (std::int64_t k = 0; k < depth; k += kPackedDepth) {
    const std::int64_t here = std::min(kPackedDepth, depth - k);
    const std::int8_t* x[T];
    for (int t = 0; t < T; ++t) x[t] = Record::of(*p.int8, p.packed_rows, x_row[t], k, here).codes;
    for (std::int64_t n = 0; n < n_tiles; ++n) {
      for (std::int64_t chain = 0; chain < 4; ++chain)
        multiply_chain<Tile, T>(tile[n], k, here, chain, x, &sums[n][chain][0][0]);
    }
  }
  std::int64_t row = row_begin;
  for (std::int64_t n = 0; n < n_tiles; ++n) {
    const std::int64_t lane = row % Int8Tiles::kRows, end = std::min(row_end, row - lane + Int8Tiles::kRows);
    const auto mask = static_cast<__mmask16>((1U << (end - row)) - 1);
    const __m512i lanes =
        _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(static_cast<int>(lane)));
    for (int t = 0; t < T; ++t) {
      __m512 sum = _mm512_add_ps(_mm512_add_ps(_mm512_load_ps(sums[n][0][t]), _mm512_load_ps(sums[n][2][t])),
                                 _mm512_add_ps(_mm512_load_ps(sums[n][1][t]), _mm512_load_ps(sums[n][3][t])));
      sum = _mm512_permutexvar_ps(lanes, sum);
      float* y = p.output(first_token + t) + row;
      if (p.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
      _mm512_mask_storeu_ps(y, mask, sum);
    }
    row = end;
  }
}

template <class Tile>
inline void multiply_panel(const GemmArgs& p, const Tile* tile, std::int64_t n_tiles, std::int64_t row_begin,
                           std::int64_t row_end) {
  const std::int64_t parts = (p.n_tokens + kTokens - 1) / kTokens;
  for (std::int64_t i = 0, t = 0; i < parts; ++i) {
    const std::int64_t next = (i + 1) * p.n_tokens / parts;
    switch (next - t) {
#define HADAL_TOKENS(n_tokens)                                               \
  case n_tokens:                                                             \
    multiply_tiles<Tile, n_tokens>(p, tile, n_tiles, row_begin, row_end, t); \
    break;
      HADAL_TOKENS(1)
      HADAL_TOKENS(2)
      HADAL_TOKENS(3)
      HADAL_TOKENS(4)
      HADAL_TOKENS(5)
      HADAL_TOKENS(6)
      HADAL_TOKENS(7)
      HADAL_TOKENS(8)
      HADAL_TOKENS(9)
      HADAL_TOKENS(10)
      HADAL_TOKENS(11)
      HADAL_TOKENS(12)
#undef HADAL_TOKENS
      default:
        break;
    }
    t = next;
  }
}

// Rows [row, row_end), at most 16, of FP4 into a panel in the order of int8_tiles.h, with the anchors of
// Fp4Tile. False if a scale is too large for those.
inline bool unpack_fp4(const Linear& w, std::int64_t row, std::int64_t row_end, std::uint8_t* codes,
                       float* anchors) {
  const std::byte* source[16];
  const std::uint8_t* scale[16];
  for (std::int64_t r = 0; r < 16; ++r) {
    const std::int64_t real = std::min(row + r, row_end - 1);
    source[r] = w.weight + real * (w.in / 2);
    scale[r] = w.scale + real * (w.in / 32);
  }
  for (std::int64_t k = 0; k < w.in; k += kGroup) {
    const std::int64_t block = k / kPackedDepth * kPackedDepth;
    const std::int64_t groups = std::min(kPackedDepth, w.in - block) / kGroup, group = (k - block) / kGroup;
    __m512i v[16];
    for (int r = 0; r < 16; ++r) v[r] = _mm512_loadu_si512(source[r] + k / 2);
    transpose(v);  // v[d]: dword d of every row, the entries 8 d .. 8 d + 7
    for (std::int64_t chain = 0; chain < 4; ++chain) {
      std::uint8_t* to = codes + (block / 32 + chain * groups + group) * 512;
      for (int i = 0; i < 4; ++i) {
        _mm512_store_si512(to + i * 64, offset_values(v[chain * 4 + i]));
        _mm512_store_si512(to + 256 + i * 64, offset_values(high_nibbles(v[chain * 4 + i])));
      }
    }
  }
  // Scale bytes of 64 blocks at a time: a dword is a group. A block whose scale counts as zero has zeros.
  __m512i largest = _mm512_setzero_si512();
  for (std::int64_t first = 0; first < w.in / 32; first += 64) {
    const std::int64_t count = std::min<std::int64_t>(64, w.in / 32 - first);
    const __mmask64 mask = count == 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
    __m512i v[16];
    for (int r = 0; r < 16; ++r) v[r] = _mm512_maskz_loadu_epi8(mask, scale[r] + first);
    transpose(v);
    for (std::int64_t g = 0; g < count / 4; ++g) {
      const std::int64_t k = (first + g * 4) * 32, block = k / kPackedDepth * kPackedDepth;
      const std::int64_t groups = std::min(kPackedDepth, w.in - block) / kGroup, group = (k - block) / kGroup;
      for (std::int64_t chain = 0; chain < 4; ++chain) {
        const __m512i bytes =
            _mm512_and_si512(_mm512_srl_epi32(v[g], _mm_cvtsi64_si128(8 * chain)), _mm512_set1_epi32(255));
        const std::int64_t at = block / 32 + chain * groups + group;
        largest = _mm512_max_epi32(largest, bytes);
        const __mmask16 nothing = _mm512_cmplt_epi32_mask(bytes, _mm512_set1_epi32(kLeastScale));
        for (int i = 0; nothing != 0 && i < 8; ++i)
          _mm512_mask_storeu_epi32(codes + at * 512 + i * 64, nothing, _mm512_set1_epi8(16));
        // The exponent of 2^23 times half the scale, 2^(b-128), and the first bit of the fraction.
        const __m512i exponent =
            _mm512_add_epi32(_mm512_max_epi32(bytes, _mm512_set1_epi32(kLeastScale)), _mm512_set1_epi32(22));
        const __m512i bits = _mm512_or_si512(_mm512_slli_epi32(exponent, 23), _mm512_set1_epi32(1 << 22));
        _mm512_store_ps(anchors + at * 16, _mm512_castsi512_ps(bits));
      }
    }
  }
  return _mm512_reduce_max_epi32(largest) <= kLargestScale;
}

// A few tokens at a time, whatever the scales.
void gemm_fp4_fused(const GemmArgs& p) {
  for (std::int64_t t = 0; t < p.n_tokens; t += kFused) {
    GemmArgs few = p;
    few.n_tokens = std::min<std::int64_t>(kFused, p.n_tokens - t);
    few.first_token += t;
    if (p.x_index != nullptr) few.x_index += t;
    if (p.y_index != nullptr) few.y_index += t;
    switch (few.n_tokens) {
      case 1:
        multiply_fused<1>(few);
        break;
      case 2:
        multiply_fused<2>(few);
        break;
      case 3:
        multiply_fused<3>(few);
        break;
      default:
        multiply_fused<kFused>(few);
        break;
    }
  }
}

void gemm_int8(const GemmArgs& p) {
  const Linear& w = *p.weight;
  if (w.format == Linear::Format::fp4) {
    if (p.n_tokens <= kFused) return gemm_fp4_fused(p);
    auto* codes = scratch<std::uint8_t, 0>(kPanelTiles * 16 * w.in);
    auto* anchors = scratch<float, 1>(kPanelTiles * w.in / 2);
    for (std::int64_t row = p.row_begin; row < p.row_end;) {
      Fp4Tile tile[kPanelTiles];
      std::int64_t n_tiles = 0, end = row;
      bool fits = true;
      for (; n_tiles < kPanelTiles && end < p.row_end; ++n_tiles) {
        const std::int64_t next = std::min(p.row_end, end - end % 16 + 16);
        std::uint8_t* to = codes + n_tiles * 16 * w.in;
        float* anchors_to = anchors + n_tiles * w.in / 2;
        tile[n_tiles] = {to, anchors_to};
        fits = unpack_fp4(w, end - end % 16, next, to, anchors_to) && fits;
        end = next;
      }
      if (fits) {
        multiply_panel(p, tile, n_tiles, row, end);
      } else {
        GemmArgs panel = p;
        panel.row_begin = row;
        panel.row_end = end;
        gemm_fp4_fused(panel);
      }
      row = end;
    }
    return;
  }
  // Few tokens wait for memory, which likes one linear stream: tile after tile.
  const std::int64_t at_once = p.n_tokens <= kFused ? 1 : kPanelTiles;
  for (std::int64_t row = p.row_begin; row < p.row_end;) {
    Int8Tile tile[kPanelTiles];
    std::int64_t n_tiles = 0, end = row;
    for (; n_tiles < at_once && end < p.row_end; ++n_tiles) {
      tile[n_tiles] = {p.int8_tiles + end / 16 * Int8Tiles::bytes(w.in)};
      end = std::min(p.row_end, end - end % 16 + 16);
    }
    multiply_panel(p, tile, n_tiles, row, end);
    row = end;
  }
}

}  // namespace
}  // namespace hadal::cpu::avx512vnni
HADAL_TARGET_END

namespace hadal::cpu::avx512vnni {

bool supported() {
  return avx512::supported() && __builtin_cpu_supports("avx512vnni");
}

void install(Kernels& table) {
  table.int8_panel_rows = kPanelTiles * Int8Tiles::kRows;
  table.round_input_int8 = round_input_int8;
  table.gemm_int8 = gemm_int8;
}

}  // namespace hadal::cpu::avx512vnni

#endif
