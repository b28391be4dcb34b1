// AVX-512 with BF16 dot products: linears whose weights are BF16, FP8 or FP4.
//
// An E4M3 value or an E2M1 value times a power of two is exact in BF16, and so is an input rounded to E4M3.
// Two ways to multiply follow, by the input:
//
// Rounded input (`official` numerics, FP8 and FP4 weights; compressors in `int8`): vdpbf16ps multiplies pairs
// without error and adds the products to a float32 accumulator one after the other, the odd one first, each
// rounded to nearest even with subnormal operands and results taken as zero (tests/ops/vdpbf16ps_test.cpp
// holds the processor to that). Float input (BF16 and FP8 weights): the BF16 weight widens to float32 by a
// shift or a mask, and float32 multiply-adds do the rest.
//
// Order of the sum over K, the same for any number of tokens and any split of the rows: a group of entries is
// summed from zero (rounded input: 128 entries, four dot products; float input: 256, two chains of eight
// multiply-adds), the groups' sums are added in ascending order lane by lane, then the lanes in the tree of
// sum_lanes. A group is scaled before or after its sum, whichever is cheaper: scales are powers of two and
// far from the ends of the range, so both give the same bits. (E8M0 bytes under kLeastScale, 2^-63, count as
// zero: blocks without a value carry 2^-126. A code is at least 2^-9 and a rounded input 2^-31, so nothing
// else underflows.)
//
// Up to kFused tokens meet the weights as they are unpacked in registers. More share a panel of kPanelRows
// unpacked rows, [K / 512][row][512], that stays in the second-level cache.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/cpu/bf16_tables.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"
#include "tensor/codec.h"

namespace hadal::cpu::avx512bf16 {
namespace {

constexpr std::int64_t kUnit = 128;        // entries unpacked at a time: 4 vectors of 32
constexpr std::int64_t kFloatGroup = 256;  // entries summed from zero with a float input
constexpr std::int64_t kPanelRows = 32;
// A stored row is asked for this many bytes before its turn: the processor's own prefetch stops at page ends.
constexpr std::int64_t kAhead = 3072;
constexpr int kFused = 4;
constexpr int kTokens = 6;  // of a tile

}  // namespace
}  // namespace hadal::cpu::avx512bf16

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")
namespace hadal::cpu::avx512bf16 {
namespace {

inline __m512 dot_pairs(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
inline __m512i load(const std::uint16_t* p) {
  return _mm512_loadu_si512(p);
}
inline void prefetch(const std::byte* row) {
  _mm_prefetch(reinterpret_cast<const char*>(row) + kAhead, _MM_HINT_T0);
}
// The words with even and with odd index as float32.
inline __m512 even_words(__m512i w) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
inline __m512 odd_words(__m512i w) {
  return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
}

// Rows of W: unpack(unit, w) gives the entries from 128 * unit on as BF16, scaled, in the order that the
// input has.
template <bool kSplit>
struct Fp8Rows {
  const Tables& table = tables();
  const std::byte* bytes = nullptr;
  const std::uint8_t* scale = nullptr;

  void seek(const Linear& w, std::int64_t row) {
    bytes = w.weight + row * w.in;
    scale = w.scale + row / 128 * ((w.in + 127) / 128);
  }
  // Byte permutes look the low and the high byte of 64 codes up, the sign bit joins the high byte, and an
  // interleave makes words of them.
  void unpack(std::int64_t unit, __m512i* w) const {
    const std::uint8_t* t = table.e4m3[scale[unit]][0];
    const __m512i low0 = _mm512_load_si512(t), low1 = _mm512_load_si512(t + 64);
    const __m512i high0 = _mm512_load_si512(t + 128), high1 = _mm512_load_si512(t + 192);
    const __m512i first = _mm512_loadu_si512(bytes + unit * kUnit);
    const __m512i second = _mm512_loadu_si512(bytes + unit * kUnit + 64);
    prefetch(bytes + unit * kUnit);
    prefetch(bytes + unit * kUnit + 64);
    for (int i = 0; i < 2; ++i) {
      // In natural order each half needs its own 64 bytes only (an index of 64 + j means j there).
      const __m512i code =
          kSplit
              ? _mm512_permutex2var_epi8(first, _mm512_load_si512(kInterleave.split[i]), second)
              : _mm512_permutexvar_epi8(_mm512_load_si512(kInterleave.natural[i]), i == 0 ? first : second);
      const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
      const __m512i signless = _mm512_permutex2var_epi8(high0, code, high1);
      // signless | (code & 0x80)
      const __m512i high = _mm512_ternarylogic_epi64(signless, code, _mm512_set1_epi8(-128), 0xf8);
      w[2 * i] = _mm512_unpacklo_epi8(low, high);
      w[2 * i + 1] = _mm512_unpackhi_epi8(low, high);
    }
  }
};

// Read as they are: the processor's own prefetch keeps up with that, and asking ahead costs a fifth of it.
struct Bf16Rows {
  const std::byte* bytes = nullptr;

  void seek(const Linear& w, std::int64_t row) { bytes = w.weight + row * w.in * 2; }
  void unpack(std::int64_t unit, __m512i* w) const {
    for (int i = 0; i < 4; ++i) w[i] = _mm512_loadu_si512(bytes + unit * kUnit * 2 + i * 64);
  }
};

// FP4: 128 codes are 64 bytes, four to a word; shifts of 0, 4, 8 and 12 bits put each at the bottom of its
// word and a word permute looks it up. What is above the four bits is the next code (the fifth index bit) or
// never looked at. The four scales of a unit belong to a quarter of the words each, so they enter after the
// sum (`scales`), or as an addition to the exponents (unpack).
struct Fp4Rows {
  const std::uint16_t* values = tables().e2m1;
  const std::byte* bytes = nullptr;
  const std::uint8_t* scale = nullptr;

  void seek(const Linear& w, std::int64_t row) {
    bytes = w.weight + row * (w.in / 2);
    scale = w.scale + row * (w.in / 32);
  }
  void unpack_unscaled(std::int64_t unit, __m512i* w) const {
    const __m512i table = load(values);
    const __m512i codes = _mm512_loadu_si512(bytes + unit * (kUnit / 2));
    prefetch(bytes + unit * (kUnit / 2));
    w[0] = _mm512_permutexvar_epi16(codes, table);
    w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
    w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table);
    w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table);
  }
  // 2^(b-127) of 16 blocks from `block` on (`count` exist), 0 under kLeastScale.
  __m512 scales(std::int64_t block, std::int64_t count) const {
    const auto mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
    const __m512i b = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, scale + block));
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(_mm512_cmpge_epu32_mask(b, _mm512_set1_epi32(kLeastScale)), b, 23));
  }
  void unpack(std::int64_t unit, __m512i* w) const {
    unpack_unscaled(unit, w);
    std::uint32_t four = 0;
    std::memcpy(&four, scale + unit * 4, 4);
    const __m512i b = _mm512_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int>(four)));  // lanes 0..3
    const __m512i spread = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), b);
    const __m512i bytes_of_words = _mm512_shuffle_epi8(
        spread, _mm512_set1_epi64(static_cast<long long>(0x8000800080008000ULL)));  // each word: the byte
    const __mmask32 counts = _mm512_cmpge_epu16_mask(bytes_of_words, _mm512_set1_epi16(kLeastScale));
    const __m512i shift = _mm512_slli_epi16(_mm512_sub_epi16(bytes_of_words, _mm512_set1_epi16(127)),
                                            7);  // of the exponent field
    for (int s = 0; s < 4; ++s) {
      const __mmask32 nonzero = _mm512_test_epi16_mask(w[s], _mm512_set1_epi16(0x7fff)) & counts;
      w[s] = _mm512_maskz_add_epi16(nonzero, w[s], shift);
    }
  }
};

// a's lanes i + lanes i + 8 in the lower half, b's in the upper.
inline __m512 add_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
// The lanes of four vectors summed, each in the order of sum_lanes (lane i + lane i + 8, then 4, 2, 1).
inline __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = add_halves(a, b), cd = add_halves(c, d);
  const __m512 quads = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const __m512 pairs = _mm512_add_ps(quads, _mm512_permute_ps(quads, 0x4e));
  const __m512 sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, sums));
}

// Up to four neighbouring rows of one token.
inline void put(const GemmArgs& p, std::int64_t t, std::int64_t row, std::int64_t rows, __m128 dots) {
  float* y = p.output(t) + row;
  const auto mask = static_cast<__mmask8>((1U << rows) - 1);
  if (p.accumulate) dots = _mm_add_ps(_mm_maskz_loadu_ps(mask, y), dots);
  _mm_mask_storeu_ps(y, mask, dots);
}

// What a kind of input is: its element, and how a row of W meets T tokens (`fused`) and how R unpacked rows
// do.
struct RoundedInput {
  using Element = std::uint16_t;
  static constexpr int kRows = 2;
  static const Element* data(const GemmArgs& p) { return p.rounded; }

  // total[t] += row . x[t] over one block of K, whose entries begin at unit `unit`.
  template <int T, bool kSplit>
  static void fused(const Fp8Rows<kSplit>& row, std::int64_t unit, std::int64_t depth,
                    const Element* const* x, __m512* total) {
    for (std::int64_t k = 0; k < depth; k += kUnit) {
      __m512i w[4];
      row.unpack(unit + k / kUnit, w);
      for (int t = 0; t < T; ++t) total[t] = _mm512_add_ps(total[t], group<T>(w, x[t] + k));
    }
  }
  template <int T>
  static void fused(const Fp4Rows& row, std::int64_t unit, std::int64_t depth, const Element* const* x,
                    __m512* total) {
    // Four units at a time have 16 scales.
    const __m512 scales = row.scales(unit * 4, depth / 32);
    __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (std::int64_t k = 0; k < depth; k += kUnit) {
      __m512i w[4];
      row.unpack_unscaled(unit + k / kUnit, w);
      const __m512 scale = _mm512_permutexvar_ps(lanes, scales);
      lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(4));
      for (int t = 0; t < T; ++t) total[t] = _mm512_fmadd_ps(group<T>(w, x[t] + k), scale, total[t]);
    }
  }
  template <int T>
  static void fused(const Bf16Rows& row, std::int64_t unit, std::int64_t depth, const Element* const* x,
                    __m512* total) {
    for (std::int64_t k = 0; k < depth; k += kUnit) {
      __m512i w[4];
      row.unpack(unit + k / kUnit, w);
      for (int t = 0; t < T; ++t) total[t] = _mm512_add_ps(total[t], group<T>(w, x[t] + k));
    }
  }
  template <int T>
  static __m512 group(const __m512i* w, const Element* x) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) sum = dot_pairs(sum, w[i], load(x + 32 * i));
    return sum;
  }

  // total[r][t] (+)= w[r] . x[t] over one block of K; rows are `stride` apart.
  template <int R, int T>
  static void block(const std::uint16_t* w, std::int64_t stride, const Element* const* x, bool first,
                    float* total) {
    __m512 sum[R][T];
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) {
        sum[r][t] = first ? _mm512_setzero_ps() : _mm512_load_ps(total + (r * T + t) * 16);
      }
    }
    for (std::int64_t k = 0; k < stride; k += kUnit) {
      __m512i left[R][4];
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) left[r][i] = load(w + r * stride + k + 32 * i);
      }
      for (int t = 0; t < T; ++t) {
        __m512 group[R];
        for (int r = 0; r < R; ++r) group[r] = _mm512_setzero_ps();
        for (int i = 0; i < 4; ++i) {
          const __m512i right = load(x[t] + k + 32 * i);
          for (int r = 0; r < R; ++r) group[r] = dot_pairs(group[r], left[r][i], right);
        }
        for (int r = 0; r < R; ++r) sum[r][t] = _mm512_add_ps(sum[r][t], group[r]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) _mm512_store_ps(total + (r * T + t) * 16, sum[r][t]);
    }
  }
};

// A float input has its entries split by 32: 16 with even index, then 16 with odd.
struct FloatInput {
  using Element = float;
  static constexpr int kRows = 4;
  static const Element* data(const GemmArgs& p) { return p.split; }

  template <int T, class Rows>
  static void fused(const Rows& row, std::int64_t unit, std::int64_t depth, const Element* const* x,
                    __m512* total) {
    for (std::int64_t begin = 0; begin < depth; begin += kFloatGroup) {
      __m512 sum[T];
      for (int t = 0; t < T; ++t) sum[t] = _mm512_setzero_ps();
      const std::int64_t end = std::min(begin + kFloatGroup, depth);
      for (std::int64_t k = begin; k < end; k += kUnit) {
        __m512i w[4];
        row.unpack(unit + k / kUnit, w);
        for (int i = 0; i < 4; ++i) {
          const __m512 even = even_words(w[i]), odd = odd_words(w[i]);
          for (int t = 0; t < T; ++t) {
            sum[t] = _mm512_fmadd_ps(even, _mm512_loadu_ps(x[t] + k + 32 * i), sum[t]);
            sum[t] = _mm512_fmadd_ps(odd, _mm512_loadu_ps(x[t] + k + 32 * i + 16), sum[t]);
          }
        }
      }
      for (int t = 0; t < T; ++t) total[t] = _mm512_add_ps(total[t], sum[t]);
    }
  }

  template <int R, int T>
  static void block(const std::uint16_t* w, std::int64_t stride, const Element* const* x, bool first,
                    float* total) {
    for (std::int64_t begin = 0; begin < stride; begin += kFloatGroup) {
      __m512 sum[R][T];
      for (int r = 0; r < R; ++r) {
        for (int t = 0; t < T; ++t) sum[r][t] = _mm512_setzero_ps();
      }
      const std::int64_t end = std::min(begin + kFloatGroup, stride);
      for (std::int64_t k = begin; k < end; k += 32) {
        __m512 left[R];
        for (int r = 0; r < R; ++r) left[r] = even_words(load(w + r * stride + k));
        for (int t = 0; t < T; ++t) {
          const __m512 right = _mm512_loadu_ps(x[t] + k);
          for (int r = 0; r < R; ++r) sum[r][t] = _mm512_fmadd_ps(left[r], right, sum[r][t]);
        }
        for (int r = 0; r < R; ++r) left[r] = odd_words(load(w + r * stride + k));
        for (int t = 0; t < T; ++t) {
          const __m512 right = _mm512_loadu_ps(x[t] + k + 16);
          for (int r = 0; r < R; ++r) sum[r][t] = _mm512_fmadd_ps(left[r], right, sum[r][t]);
        }
      }
      for (int r = 0; r < R; ++r) {
        for (int t = 0; t < T; ++t) {
          float* to = total + (r * T + t) * 16;
          const __m512 before = first && begin == 0 ? _mm512_setzero_ps() : _mm512_load_ps(to);
          _mm512_store_ps(to, _mm512_add_ps(before, sum[r][t]));
        }
      }
    }
  }
};

// Inputs of T tokens from entry k on.
template <class Input, int T>
inline void locate(const GemmArgs& p, const std::int64_t* x_row, std::int64_t k, std::int64_t here,
                   const typename Input::Element** x) {
  for (int t = 0; t < T; ++t) x[t] = Input::data(p) + k * p.packed_rows + x_row[t] * here;
}

// T tokens against the rows straight from their stored format.
template <class Input, class Rows, int T>
inline void multiply_fused(const GemmArgs& p) {
  const std::int64_t depth = p.weight->in;
  std::int64_t x_row[T];
  for (int t = 0; t < T; ++t) x_row[t] = p.input_row(t);
  Rows source;
  for (std::int64_t row = p.row_begin; row < p.row_end; row += 4) {
    const std::int64_t rows = std::min<std::int64_t>(4, p.row_end - row);
    __m512 total[4][T];
    for (int r = 0; r < 4; ++r) {
      for (int t = 0; t < T; ++t) total[r][t] = _mm512_setzero_ps();
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      source.seek(*p.weight, row + r);
      __m512 sum[T];
      for (int t = 0; t < T; ++t) sum[t] = _mm512_setzero_ps();
      for (std::int64_t k = 0; k < depth; k += kPackedDepth) {
        const std::int64_t here = std::min(kPackedDepth, depth - k);
        const typename Input::Element* x[T];
        locate<Input, T>(p, x_row, k, here, x);
        Input::template fused<T>(source, k / kUnit, here, x, sum);
      }
      for (int t = 0; t < T; ++t) total[r][t] = sum[t];
    }
    for (int t = 0; t < T; ++t) {
      put(p, t, row, rows, sum_lanes(total[0][t], total[1][t], total[2][t], total[3][t]));
    }
  }
}

// T tokens against an unpacked panel; the sums of the whole panel live through the blocks of K.
template <class Input, int T>
inline void multiply_panel(const GemmArgs& p, const std::uint16_t* panel, std::int64_t row, std::int64_t rows,
                           std::int64_t first_token, float* total) {
  constexpr int kRows = Input::kRows;
  const std::int64_t depth = p.weight->in;
  std::int64_t x_row[T];
  for (int t = 0; t < T; ++t) x_row[t] = p.input_row(first_token + t);
  for (std::int64_t k = 0; k < depth; k += kPackedDepth) {
    const std::int64_t here = std::min(kPackedDepth, depth - k);
    const std::uint16_t* w = panel + k * rows;
    const typename Input::Element* x[T];
    locate<Input, T>(p, x_row, k, here, x);
    std::int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      Input::template block<kRows, T>(w + r * here, here, x, k == 0, total + r * T * 16);
    }
    for (; r < rows; ++r) Input::template block<1, T>(w + r * here, here, x, k == 0, total + r * T * 16);
  }
  for (std::int64_t r = 0; r < rows; r += 4) {
    const std::int64_t count = std::min<std::int64_t>(4, rows - r);
    for (int t = 0; t < T; ++t) {
      const float* at = total + (r * T + t) * 16;
      __m512 sums[4];
      for (int i = 0; i < 4; ++i) sums[i] = _mm512_load_ps(at + (i < count ? i * T * 16 : 0));
      put(p, first_token + t, row + r, count, sum_lanes(sums[0], sums[1], sums[2], sums[3]));
    }
  }
}

template <class Rows>
inline void unpack_panel(const Linear& w, std::int64_t row, std::int64_t rows, std::uint16_t* panel) {
  Rows source;
  for (std::int64_t r = 0; r < rows; ++r) {
    source.seek(w, row + r);
    for (std::int64_t k = 0; k < w.in; k += kPackedDepth) {
      const std::int64_t here = std::min(kPackedDepth, w.in - k);
      std::uint16_t* to = panel + k * rows + r * here;
      for (std::int64_t at = 0; at < here; at += kUnit) {
        __m512i values[4];
        source.unpack((k + at) / kUnit, values);
        for (int i = 0; i < 4; ++i) _mm512_store_si512(to + at + 32 * i, values[i]);
      }
    }
  }
}

template <class Input, class Rows>
inline void gemm_rows(const GemmArgs& p) {
  switch (p.n_tokens) {
    case 1:
      return multiply_fused<Input, Rows, 1>(p);
    case 2:
      return multiply_fused<Input, Rows, 2>(p);
    case 3:
      return multiply_fused<Input, Rows, 3>(p);
    case kFused:
      return multiply_fused<Input, Rows, kFused>(p);
    default:
      break;
  }
  auto* panel = scratch<std::uint16_t, 0>(kPanelRows * p.weight->in);
  auto* total = scratch<float, 1>(kPanelRows * kTokens * 16);
  for (std::int64_t row = p.row_begin; row < p.row_end; row += kPanelRows) {
    const std::int64_t rows = std::min(kPanelRows, p.row_end - row);
    unpack_panel<Rows>(*p.weight, row, rows, panel);
    // Tiles of at most kTokens tokens, as even as they can be.
    const std::int64_t tiles = (p.n_tokens + kTokens - 1) / kTokens;
    for (std::int64_t tile = 0, t = 0; tile < tiles; ++tile) {
      const std::int64_t next = (tile + 1) * p.n_tokens / tiles;
      switch (next - t) {
        case 3:
          multiply_panel<Input, 3>(p, panel, row, rows, t, total);
          break;
        case 4:
          multiply_panel<Input, 4>(p, panel, row, rows, t, total);
          break;
        case 5:
          multiply_panel<Input, 5>(p, panel, row, rows, t, total);
          break;
        default:  // never fewer than three: there are more than kFused tokens
          multiply_panel<Input, kTokens>(p, panel, row, rows, t, total);
          break;
      }
      t = next;
    }
  }
}

void gemm(const GemmArgs& p) {
  const Linear::Format format = p.weight->format;
  if (p.rounded != nullptr) {
    if (format == Linear::Format::bf16) return gemm_rows<RoundedInput, Bf16Rows>(p);
    if (format == Linear::Format::fp8) return gemm_rows<RoundedInput, Fp8Rows<true>>(p);
    return gemm_rows<RoundedInput, Fp4Rows>(p);
  }
  if (p.split != nullptr) {
    if (format == Linear::Format::fp8) return gemm_rows<FloatInput, Fp8Rows<false>>(p);
    return gemm_rows<FloatInput, Bf16Rows>(p);
  }
  avx512::kernels().gemm(p);
}

// y rounded to E4M3's grid: three bits behind the leading one, and nothing finer than 2^-9. Adding and taking
// away 2^23 quanta rounds to the nearest, ties to even. |y| <= 448 (1 + 2^-22), which is 448 after rounding.
inline __m512 round_e4m3(__m512 y) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(y), _mm512_set1_epi32(0x7fffffff));
  const __m512i exponent = _mm512_and_si512(magnitude, _mm512_set1_epi32(0x7f800000));
  const __m512 leading = _mm512_max_ps(_mm512_castsi512_ps(exponent), _mm512_set1_ps(0x1p-6F));
  const __m512 shift = _mm512_mul_ps(leading, _mm512_set1_ps(0x1p20F));
  const __m512 rounded = _mm512_sub_ps(_mm512_add_ps(_mm512_castsi512_ps(magnitude), shift), shift);
  // the sign of y (a - 0 stays one)
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(rounded), _mm512_castps_si512(y),
                                                       _mm512_set1_epi32(INT32_MIN), 0xf8));
}

// Where entry k of row `row` goes in an input of `rows` rows.
template <class T>
inline T* place(T* out, std::int64_t rows, std::int64_t row, std::int64_t k, std::int64_t dim) {
  return out + packed_at(rows, row, k, dim);
}

void round_input(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                 std::int64_t rows, std::int64_t dim, std::uint16_t* out) {
  const __m512i every_fourth = _mm512_set_epi16(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0,
                                                60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t k = 0; k < dim; k += kUnit) {
      const float* from = x + row * x_stride + k;
      __m512 v[8], amax = _mm512_setzero_ps();
      for (int i = 0; i < 8; ++i) {
        v[i] = _mm512_loadu_ps(from + 16 * i);
        amax = _mm512_max_ps(_mm512_abs_ps(v[i]), amax);  // of a NaN and a number the second: the number
      }
      const std::uint8_t byte =
          e8m0_scale(std::max(_mm512_reduce_max_ps(amax), 1e-4F), static_cast<float>(1.0 / 448));
      const float scale = e8m0_to_f32(byte);
      const __m512 factor = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(1.0F / scale);
      __m512i words[4];  // in natural order
      for (int i = 0; i < 4; ++i) {
        __m256i half[2];
        for (int j = 0; j < 2; ++j) {
          const __m512 value = _mm512_mul_ps(round_e4m3(_mm512_mul_ps(v[2 * i + j], inverse)), factor);
          half[j] = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(value), 16));
        }
        words[i] = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
      }
      std::uint16_t* to = place(out, rows, row, k, dim);
      for (int s = 0; s < 4; ++s) {
        const __m512i index = _mm512_add_epi16(every_fourth, _mm512_set1_epi16(static_cast<short>(s)));
        const __m512i low = _mm512_permutex2var_epi16(words[0], index, words[1]);
        const __m512i high = _mm512_permutex2var_epi16(words[2], index, words[3]);
        _mm512_storeu_si512(to + 32 * s, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
      }
    }
  }
}

// Subnormals become zero, which products take them for.
void round_input_bf16(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t rows, std::int64_t dim, std::uint16_t* out) {
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t k = 0; k < dim; k += 32) {
      const float* from = x + row * x_stride + k;
      const __m512bh words = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
      _mm512_storeu_si512(place(out, rows, row, k, dim), reinterpret_cast<__m512i>(words));
    }
  }
}

void split_input(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                 std::int64_t rows, std::int64_t dim, float* out) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t k = 0; k < dim; k += 32) {
      const float* from = x + row * x_stride + k;
      const __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
      float* to = place(out, rows, row, k, dim);
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(low, even, high));
      _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(low, odd, high));
    }
  }
}

}  // namespace
}  // namespace hadal::cpu::avx512bf16
HADAL_TARGET_END

namespace hadal::cpu::avx512bf16 {

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = avx512vnni::kernels();
    table.isa = "avx512bf16";
    table.panel_rows = kPanelRows;
    table.gemm = gemm;
    table.round_input = round_input;
    table.split_input = split_input;
    table.round_input_bf16 = round_input_bf16;
    table.sparse_attention = sparse_attention;
    table.index_fp8_query = index_fp8_query;
    table.index_fp8_scores = index_fp8_scores;
    return table;
  }();
  return kTable;
}

bool supported() {
  return avx512::supported() && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace hadal::cpu::avx512bf16

#endif
