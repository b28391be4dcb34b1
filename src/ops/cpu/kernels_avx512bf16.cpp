// AVX-512 with BF16 dot products: the multiplications of quantised linears whose input is quantised too.
//
// An E4M3 value or an E2M1 value times a power of two is exact in BF16, and so is the quantised input, an
// E4M3 value times a power of two. vdpbf16ps multiplies two such pairs without error and adds the products to
// a float32 accumulator one after the other, the odd one first, each rounded to nearest even with subnormal
// operands and results taken as zero (tests/ops/vdpbf16ps_test.cpp holds the processor to that). What differs
// from the definition is therefore the rounding of the sums alone, and that weights and inputs below 2^-126
// count as zero.
//
// Order of a sum over K, the same for any number of tokens and any split of the rows: blocks of 512 entries,
// each summed from zero in one chain of 16 lanes (32 entries a step, lane l takes entries 2l and 2l+1); the
// blocks' sums are added in ascending order lane by lane, then the lanes in the tree of sum_lanes. Between
// blocks nothing depends on anything, so one row alone keeps the multipliers busy.
//
// Up to kFused tokens meet the weights as they are unpacked in registers. More tokens share a panel of
// kPanelRows unpacked rows, [K / 512][row][512], that stays in the second-level cache.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/buffer.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/target.h"
#include "tensor/codec.h"

namespace hadal::cpu::avx512bf16 {
namespace {

constexpr std::int64_t kUnit = 128;  // entries unpacked at a time: 4 vectors of 32
constexpr std::int64_t kPanelRows = 32;
constexpr int kFused = 4;
constexpr int kRows = 4, kTokens = 6;  // of a tile: 24 accumulators

// For every E8M0 scale b the BF16 numbers value(code) * 2^(b-127): 256 B of E4M3 (signless codes, split in
// low and high bytes for byte permutes) and 64 B of E2M1 (twice, since the permute reads five index bits).
// A matrix uses a few neighbouring scales, so what it needs stays in the first-level cache.
struct alignas(64) Tables {
  std::uint8_t e4m3[256][2][128];
  std::uint16_t e2m1[256][32];

  Tables() {
    for (unsigned b = 0; b < 256; ++b) {
      const float scale = e8m0_to_f32(static_cast<std::uint8_t>(b));
      for (unsigned code = 0; code < 128; ++code) {
        const std::uint16_t value = f32_to_bf16(e4m3_to_f32(static_cast<std::uint8_t>(code)) * scale);
        e4m3[b][0][code] = static_cast<std::uint8_t>(value & 0xff);
        e4m3[b][1][code] = static_cast<std::uint8_t>(value >> 8);
      }
      for (unsigned code = 0; code < 32; ++code) {
        e2m1[b][code] = f32_to_bf16(e2m1_to_f32(static_cast<std::uint8_t>(code & 15)) * scale);
      }
    }
  }
};

const Tables& tables() {
  static const Tables kTables;
  return kTables;
}

// At least n elements that belong to this thread, kept for its next call.
template <class T, int kWhich>
T* scratch(std::int64_t n) {
  static thread_local Buffer<T> buffer;
  if (static_cast<std::int64_t>(buffer.size()) < n)
    buffer = Buffer<T>::uninitialised(static_cast<std::size_t>(n));
  return buffer.data();
}

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

// Rows of W: unpack(unit, w) gives entries 128 * unit + 32 * i .. + 31 in w[i], scaled.
struct Fp8Rows {
  const Tables& table = tables();
  const std::byte* bytes = nullptr;
  const std::uint8_t* scale = nullptr;

  void seek(const Linear& w, std::int64_t row) {
    bytes = w.weight + row * w.in;
    scale = w.scale + row / 128 * ((w.in + 127) / 128);
  }
  // Byte permutes look the low and the high byte of 64 codes up, the sign bit joins the high byte, and an
  // interleave makes words of them. The interleave works inside 128-bit lanes and takes the lower halves of
  // the lanes first, hence the order in which the codes are loaded.
  void unpack(std::int64_t unit, __m512i* w) const {
    const std::uint8_t* t = table.e4m3[scale[unit]][0];
    const __m512i low0 = _mm512_load_si512(t), low1 = _mm512_load_si512(t + 64);
    const __m512i high0 = _mm512_load_si512(t + 128), high1 = _mm512_load_si512(t + 192);
    const __m512i halves = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 2; ++i) {
      const __m512i code =
          _mm512_permutexvar_epi64(halves, _mm512_loadu_si512(bytes + unit * kUnit + i * 64));
      const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
      const __m512i signless = _mm512_permutex2var_epi8(high0, code, high1);
      // signless | (code & 0x80)
      const __m512i high = _mm512_ternarylogic_epi64(signless, code, _mm512_set1_epi8(-128), 0xf8);
      w[2 * i] = _mm512_unpacklo_epi8(low, high);
      w[2 * i + 1] = _mm512_unpackhi_epi8(low, high);
    }
  }
};

struct Fp4Rows {
  const Tables& table = tables();
  const std::byte* bytes = nullptr;
  const std::uint8_t* scale = nullptr;

  void seek(const Linear& w, std::int64_t row) {
    bytes = w.weight + row * (w.in / 2);
    scale = w.scale + row * (w.in / 32);
  }
  // 32 codes are 16 bytes: a 64-bit lane gets four of them, shifts of 0, 4, 8 and 12 bits put each at the
  // bottom of a word, and a word permute looks it up. What is above the four bits is never looked at.
  void unpack(std::int64_t unit, __m512i* w) const {
    const __m512i shifts = _mm512_set1_epi64(0x000c000800040000);
    for (int i = 0; i < 4; ++i) {
      const __m128i packed =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + unit * (kUnit / 2) + i * 16));
      const __m512i codes = _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu16_epi64(packed));
      w[i] = _mm512_permutexvar_epi16(codes, _mm512_load_si512(table.e2m1[scale[unit * 4 + i]]));
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

// Where token number t of the call has its input and its output.
inline std::int64_t input_row(const GemmArgs& p, std::int64_t t) {
  return p.x_index != nullptr ? std::int64_t{p.x_index[t]} : t;
}
inline float* output(const GemmArgs& p, std::int64_t t) {
  return p.y + (p.y_index != nullptr ? std::int64_t{p.y_index[t]} : t) * p.y_stride;
}

// Up to four neighbouring rows of one token.
inline void put(const GemmArgs& p, std::int64_t t, std::int64_t row, std::int64_t rows, __m128 dots) {
  float* y = output(p, t) + row;
  const auto mask = static_cast<__mmask8>((1U << rows) - 1);
  if (p.accumulate) dots = _mm_add_ps(_mm_maskz_loadu_ps(mask, y), dots);
  _mm_mask_storeu_ps(y, mask, dots);
}

// T tokens against the rows straight from their stored format.
template <class Rows, int T>
inline void multiply_fused(const GemmArgs& p, std::int64_t first_token) {
  const std::int64_t depth = p.weight->in;
  std::int64_t x_row[T];
  for (int t = 0; t < T; ++t) x_row[t] = input_row(p, first_token + t);
  Rows source;
  for (std::int64_t row = p.row_begin; row < p.row_end; row += 4) {
    const std::int64_t rows = std::min<std::int64_t>(4, p.row_end - row);
    __m512 total[4][T];
    for (int r = 0; r < 4; ++r) {
      for (int t = 0; t < T; ++t) total[r][t] = _mm512_setzero_ps();
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      source.seek(*p.weight, row + r);
      for (std::int64_t k = 0; k < depth; k += kPackedDepth) {
        const std::int64_t here = std::min(kPackedDepth, depth - k);
        const std::uint16_t* x[T];
        for (int t = 0; t < T; ++t) x[t] = p.packed + k * p.packed_rows + x_row[t] * here;
        __m512 sum[T];
        for (int t = 0; t < T; ++t) sum[t] = _mm512_setzero_ps();
        for (std::int64_t at = 0; at < here; at += kUnit) {
          __m512i w[4];
          source.unpack((k + at) / kUnit, w);
          for (int i = 0; i < 4; ++i) {
            for (int t = 0; t < T; ++t) sum[t] = dot_pairs(sum[t], w[i], load(x[t] + at + 32 * i));
          }
        }
        for (int t = 0; t < T; ++t) total[r][t] = k == 0 ? sum[t] : _mm512_add_ps(total[r][t], sum[t]);
      }
    }
    for (int t = 0; t < T; ++t) {
      put(p, first_token + t, row, rows, sum_lanes(total[0][t], total[1][t], total[2][t], total[3][t]));
    }
  }
}

// One block of K: sums of R rows (`stride` apart) and T tokens, added to total[r][t] or, if first, put there.
template <int R, int T>
inline void multiply_block(const std::uint16_t* w, std::int64_t stride, const std::uint16_t* const* x,
                           bool first, float* total) {
  __m512 sum[R][T];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) sum[r][t] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < stride; k += 32) {
    __m512i left[R];
    for (int r = 0; r < R; ++r) left[r] = load(w + r * stride + k);
    for (int t = 0; t < T; ++t) {
      const __m512i right = load(x[t] + k);
      for (int r = 0; r < R; ++r) sum[r][t] = dot_pairs(sum[r][t], left[r], right);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      float* to = total + (r * T + t) * 16;
      _mm512_store_ps(to, first ? sum[r][t] : _mm512_add_ps(_mm512_load_ps(to), sum[r][t]));
    }
  }
}

// T tokens against an unpacked panel; the sums of the whole panel live through the blocks of K.
template <int T>
inline void multiply_panel(const GemmArgs& p, const std::uint16_t* panel, std::int64_t row, std::int64_t rows,
                           std::int64_t first_token, float* total) {
  const std::int64_t depth = p.weight->in;
  std::int64_t x_row[T];
  for (int t = 0; t < T; ++t) x_row[t] = input_row(p, first_token + t);
  for (std::int64_t k = 0; k < depth; k += kPackedDepth) {
    const std::int64_t here = std::min(kPackedDepth, depth - k);
    const std::uint16_t* w = panel + k * rows;
    const std::uint16_t* x[T];
    for (int t = 0; t < T; ++t) x[t] = p.packed + k * p.packed_rows + x_row[t] * here;
    std::int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      multiply_block<kRows, T>(w + r * here, here, x, k == 0, total + r * T * 16);
    }
    for (; r < rows; ++r) multiply_block<1, T>(w + r * here, here, x, k == 0, total + r * T * 16);
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

template <class Rows>
inline void gemm_rows(const GemmArgs& p) {
  switch (p.n_tokens) {
    case 1:
      return multiply_fused<Rows, 1>(p, 0);
    case 2:
      return multiply_fused<Rows, 2>(p, 0);
    case 3:
      return multiply_fused<Rows, 3>(p, 0);
    case kFused:
      return multiply_fused<Rows, 4>(p, 0);
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
        case 1:
          multiply_panel<1>(p, panel, row, rows, t, total);
          break;
        case 2:
          multiply_panel<2>(p, panel, row, rows, t, total);
          break;
        case 3:
          multiply_panel<3>(p, panel, row, rows, t, total);
          break;
        case 4:
          multiply_panel<4>(p, panel, row, rows, t, total);
          break;
        case 5:
          multiply_panel<5>(p, panel, row, rows, t, total);
          break;
        default:
          multiply_panel<kTokens>(p, panel, row, rows, t, total);
          break;
      }
      t = next;
    }
  }
}

void gemm(const GemmArgs& p) {
  if (p.packed == nullptr) return avx512::kernels().gemm(p);
  if (p.weight->format == Linear::Format::fp8) {
    gemm_rows<Fp8Rows>(p);
  } else {
    gemm_rows<Fp4Rows>(p);
  }
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

void pack(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
          std::int64_t rows, std::int64_t dim, std::uint16_t* out) {
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t k = 0; k < dim; k += kUnit) {
      const float* from = x + row * x_stride + k;
      const std::int64_t block = k / kPackedDepth * kPackedDepth;
      std::uint16_t* to = out + block * rows + row * std::min(kPackedDepth, dim - block) + (k - block);
      __m512 v[8], amax = _mm512_setzero_ps();
      for (int i = 0; i < 8; ++i) {
        v[i] = _mm512_loadu_ps(from + 16 * i);
        amax = _mm512_max_ps(_mm512_abs_ps(v[i]), amax);  // of a NaN and a number the second: the number
      }
      const std::uint8_t byte =
          e8m0_scale(std::max(_mm512_reduce_max_ps(amax), 1e-4F), static_cast<float>(1.0 / 448));
      const float scale = e8m0_to_f32(byte);
      const __m512 factor = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(1.0F / scale);
      for (int i = 0; i < 8; ++i) {
        const __m512 value = _mm512_mul_ps(round_e4m3(_mm512_mul_ps(v[i], inverse)), factor);
        const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16 * i), _mm512_cvtepi32_epi16(upper));
      }
    }
  }
}

}  // namespace
}  // namespace hadal::cpu::avx512bf16
HADAL_TARGET_END

namespace hadal::cpu::avx512bf16 {

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = avx512::kernels();
    table.isa = "avx512bf16";
    table.panel_rows = kPanelRows;
    table.gemm = gemm;
    table.pack = pack;
    avx512vnni::use_index_kernels(table);
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
