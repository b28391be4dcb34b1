// Core attention with BF16 dot products (SparseAttentionParams::bf16), built as attention.inc is: a block of
// 64 rows meets all heads of a call, heads in lanes for the scores, channels in lanes for the outputs.
// vdpbf16ps adds two products to a lane, so scores take pairs of entries of a row and outputs pairs of rows:
//   S[j][h]  += rows[j][2k] q[h][2k] + rows[j][2k+1] q[h][2k+1]     a pair of q per lane, a pair of rows
//   broadcast O[h][c]  += P[2i][h] rows[2i][c] + P[2i+1][h] rows[2i+1][c]     a pair of rows per lane, a pair
//   of P broadcast
// A block is therefore unpacked twice: row by row, and two rows interleaved.
//
// Order of the sums, whatever the tiling: a score in chains of kScoreDepth entries, the chains one after
// another; an output over the pairs of a block in their order from zero, then added to what the blocks before
// left.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ops/attention_rows.h"
#include "ops/cpu/bf16_tables.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")
namespace hadal::cpu::avx512bf16 {
namespace {

#include "ops/cpu/avx512_vectors.inc"
// vector_math.inc is written over the vectors, attention_softmax.inc over both.
#include "ops/cpu/vector_math.inc"
// Hence this order.
#include "ops/cpu/attention_softmax.inc"

constexpr std::int64_t kBlockRows = 64;
constexpr std::int64_t kScoreDepth = 64;
constexpr int kScoreRows = 8, kOutHeads = 8;  // times two vectors: sums that live in registers

// sum[lane] += the pair of w's lane . the pair at `pair`. GCC 12 would load the broadcast by an instruction
// of its own.
inline __m512 dot_broadcast(__m512 sum, __m512i w, const std::uint32_t* pair) {
#if defined(__clang__)
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w),
                          reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(*pair))));
#else
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*pair));
  return sum;
#endif
}

// scores[j][h] = or += rows[j] . q[h] over `pairs` pairs of entries, for kScoreRows rows; q is [pair][head].
template <int V>
inline void score_tile(const std::uint32_t* rows, std::int64_t stride, const std::uint32_t* q,
                       std::int64_t heads, std::int64_t pairs, bool first, float* scores) {
  __m512 sum[kScoreRows][V];
  HADAL_UNROLL
  for (int r = 0; r < kScoreRows; ++r) {
    HADAL_UNROLL
    for (int v = 0; v < V; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < pairs; ++k) {
    __m512i head[V];
    HADAL_UNROLL
    for (int v = 0; v < V; ++v) head[v] = _mm512_loadu_si512(q + k * heads + v * 16);
    HADAL_UNROLL
    for (int r = 0; r < kScoreRows; ++r) {
      HADAL_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] = dot_broadcast(sum[r][v], head[v], rows + r * stride + k);
    }
  }
  HADAL_UNROLL
  for (int r = 0; r < kScoreRows; ++r) {
    HADAL_UNROLL
    for (int v = 0; v < V; ++v) {
      float* to = scores + r * heads + v * 16;
      _mm512_storeu_ps(to, first ? sum[r][v] : _mm512_add_ps(_mm512_loadu_ps(to), sum[r][v]));
    }
  }
}

// out[h] = decay[h] out[h] + sum_j p[j][h] rows[j] for 32 channels of H heads; p is [pair of rows][head], out
// [head][out_dim].
template <int H>
inline void out_tile(const std::uint32_t* p, std::int64_t heads, const std::uint32_t* rows, std::int64_t dim,
                     std::int64_t pairs, const float* decay, bool first, float* out, std::int64_t out_dim) {
  __m512 sum[H][2];
  HADAL_UNROLL
  for (int h = 0; h < H; ++h) sum[h][0] = sum[h][1] = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < pairs; ++i) {
    const __m512i a = _mm512_loadu_si512(rows + i * dim), b = _mm512_loadu_si512(rows + i * dim + 16);
    HADAL_UNROLL
    for (int h = 0; h < H; ++h) {
      sum[h][0] = dot_broadcast(sum[h][0], a, p + i * heads + h);
      sum[h][1] = dot_broadcast(sum[h][1], b, p + i * heads + h);
    }
  }
  HADAL_UNROLL
  for (int h = 0; h < H; ++h) {
    HADAL_UNROLL
    for (int v = 0; v < 2; ++v) {
      float* to = out + h * out_dim + v * 16;
      _mm512_storeu_ps(
          to, first ? sum[h][v] : _mm512_fmadd_ps(_mm512_set1_ps(decay[h]), _mm512_loadu_ps(to), sum[h][v]));
    }
  }
}

// The BF16 bits in the upper halves of two vectors of floats.
inline __m512i upper_halves(__m512 a, __m512 b) {
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a), 16));
  const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(b), 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline __m512i round_pair(const float* from) {
  return upper_halves(round_to_bf16(load(from)).v, round_to_bf16(load(from + 16)).v);
}

// Of the 64 codes from `block`, as an E8M0 byte; a float32 scale is a power of two.
inline std::uint8_t block_scale(const RowShape& shape, const std::byte* row, std::int64_t block) {
  if (shape.format == RowFormat::fp8_bf16)
    return std::to_integer<std::uint8_t>(row[shape.scales_at() + block / 64]);
  std::uint32_t bits;
  std::memcpy(&bits, row + shape.scales_at() + block / 128 * 4, sizeof(bits));
  return static_cast<std::uint8_t>(bits >> 23);
}

inline void unpack_row(const RowShape& shape, AttentionRows::Row row, std::uint16_t* to) {
  if (row.format == RowFormat::f32) {
    const auto* from = reinterpret_cast<const float*>(row.data);
    for (std::int64_t i = 0; i < shape.dim; i += 32) _mm512_storeu_si512(to + i, round_pair(from + i));
    return;
  }
  const __m512i natural = _mm512_load_si512(kInterleave.natural[0]);
  for (std::int64_t block = 0; block < shape.codes(); block += 64) {
    const std::uint8_t scale = block_scale(shape, row.data, block);
    const std::uint8_t* t = tables().e4m3[scale][0];
    const __m512i code = _mm512_permutexvar_epi8(natural, _mm512_loadu_si512(row.data + block));
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(t), code, _mm512_load_si512(t + 64));
    const __m512i signless =
        _mm512_permutex2var_epi8(_mm512_load_si512(t + 128), code, _mm512_load_si512(t + 192));
    // signless | (code & 0x80)
    const __m512i high = _mm512_ternarylogic_epi64(signless, code, _mm512_set1_epi8(-128), 0xf8);
    _mm512_storeu_si512(to + block, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + block + 32, _mm512_unpackhi_epi8(low, high));
  }
  std::memcpy(to + shape.codes(), row.data + shape.rope_at(), static_cast<std::size_t>(2 * shape.rope_dim));
}

// Rows of a long context are scattered over the pages, which no hardware prefetcher follows.
inline void prefetch_row(const RowShape& shape, AttentionRows::Row row) {
  const std::int64_t bytes = RowShape{row.format, shape.dim, shape.rope_dim}.bytes();
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row.data + at);
}

// Two rows, or two vectors of floats as BF16, as pairs.
struct Pairs {
  __m512i low, high;
};
inline Pairs interleave(__m512i a, __m512i b) {
  const __m512i words = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                         38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i behind = _mm512_add_epi16(words, _mm512_set1_epi16(16));
  return {_mm512_permutex2var_epi16(a, words, b), _mm512_permutex2var_epi16(a, behind, b)};
}

void transpose_queries(const float* q, std::int64_t real_heads, std::int64_t heads, std::int64_t dim,
                       std::uint32_t* out) {
  for (std::int64_t k = 0; k < dim; k += 32) {
    std::uint32_t* to = out + k / 2 * heads;
    if (real_heads < heads) std::fill_n(to, 16 * heads, 0);
    for (std::int64_t h = 0; h < real_heads; ++h) {
      alignas(64) std::uint32_t pair[16];
      _mm512_store_si512(pair, round_pair(q + h * dim + k));
      for (std::int64_t i = 0; i < 16; ++i) to[i * heads + h] = pair[i];
    }
  }
}

}  // namespace

void sparse_attention(const SparseAttentionParams& p, std::int64_t t, std::int64_t head_begin,
                      std::int64_t head_end) {
  const std::int64_t dim = p.row.dim, real_heads = head_end - head_begin;
  // Pairs come 16 to a register.
  if (!p.bf16 || dim % 32 != 0 || p.values() % 32 != 0)
    return avx512::kernels().sparse_attention(p, t, head_begin, head_end);
  const std::int64_t heads = (real_heads + 15) / 16 * 16;
  const std::int64_t stride = dim / 2 + 16;  // of a row, in pairs; odd in cache lines
  const AttentionRows rows(p, t);
  const std::int64_t values = p.values();
  float* out = p.out + (t * p.heads + head_begin) * values;

  auto* q = scratch<std::uint32_t, 0>(dim / 2 * heads);               // [dim / 2][heads]
  auto* by_row = scratch<std::uint32_t, 1>(kBlockRows * stride);      // [row][dim / 2]
  auto* by_pair = scratch<std::uint32_t, 2>(kBlockRows / 2 * dim);    // [pair of rows][dim]
  auto* scores = scratch<float, 3>(kBlockRows * heads);               // [row][heads]
  auto* weights = scratch<std::uint32_t, 4>(kBlockRows / 2 * heads);  // [pair of rows][heads]
  transpose_queries(p.q + (t * p.heads + head_begin) * dim, real_heads, heads, dim, q);
  RunningSoftmax softmax;
  softmax.start(heads);

  const float scale = p.score_scale();
  for (std::int64_t first = 0; first < rows.count(); first += kBlockRows) {
    const std::int64_t n_rows = std::min(kBlockRows, rows.count() - first), pairs = (n_rows + 1) / 2;
    const auto row_at = [&](std::int64_t j) { return reinterpret_cast<std::uint16_t*>(by_row + j * stride); };
    for (std::int64_t j = 0; j < n_rows; ++j) unpack_row(p.row, rows[first + j], row_at(j));
    if (n_rows % 2 != 0) std::fill_n(row_at(n_rows), dim, 0);
    for (std::int64_t i = 0; i < pairs; ++i) {
      const std::uint16_t *a = row_at(2 * i), *b = row_at(2 * i + 1);
      for (std::int64_t c = 0; c < dim; c += 32) {
        const Pairs both = interleave(_mm512_loadu_si512(a + c), _mm512_loadu_si512(b + c));
        _mm512_storeu_si512(by_pair + i * dim + c, both.low);
        _mm512_storeu_si512(by_pair + i * dim + c + 16, both.high);
      }
    }

    // Before each tile of scores one row of the block behind this one is fetched.
    std::int64_t next = first + kBlockRows;
    const std::int64_t last = std::min(rows.count(), next + kBlockRows);
    for (std::int64_t k = 0; k < dim / 2; k += kScoreDepth / 2) {
      const std::int64_t depth = std::min(kScoreDepth / 2, dim / 2 - k);
      for (std::int64_t h = 0; h < heads; h += 32) {
        for (std::int64_t j = 0; j < n_rows; j += kScoreRows) {
          if (next < last) prefetch_row(p.row, rows[next++]);
          const std::uint32_t *from = by_row + j * stride + k, *with = q + k * heads + h;
          float* to = scores + j * heads + h;
          if (h + 32 <= heads) {
            score_tile<2>(from, stride, with, heads, depth, k == 0, to);
          } else {
            score_tile<1>(from, stride, with, heads, depth, k == 0, to);
          }
        }
      }
    }
    softmax.next(scores, n_rows, heads, scale, true);
    if (n_rows % 2 != 0) std::fill_n(scores + n_rows * heads, heads, 0.0F);
    for (std::int64_t i = 0; i < pairs; ++i) {
      for (std::int64_t h = 0; h < heads; h += 16) {  // the even row's bits below the odd row's
        const __m512i even = _mm512_castps_si512(_mm512_loadu_ps(scores + 2 * i * heads + h));
        const __m512i odd = _mm512_castps_si512(_mm512_loadu_ps(scores + (2 * i + 1) * heads + h));
        _mm512_storeu_si512(weights + i * heads + h, _mm512_or_si512(_mm512_srli_epi32(even, 16), odd));
      }
    }
    for (std::int64_t c = 0; c < values; c += 32) {
      std::int64_t h = 0;
      for (; h + kOutHeads <= real_heads; h += kOutHeads) {
        out_tile<kOutHeads>(weights + h, heads, by_pair + c, dim, pairs, softmax.decay + h, first == 0,
                            out + h * values + c, values);
      }
      for (; h < real_heads; ++h) {
        out_tile<1>(weights + h, heads, by_pair + c, dim, pairs, softmax.decay + h, first == 0,
                    out + h * values + c, values);
      }
    }
  }
  softmax.finish(p.sink != nullptr ? p.sink + head_begin : nullptr, real_heads, values, out);
}

void index_fp8_query(const float* q, std::int64_t heads, std::int64_t dim, std::uint32_t* pairs) {
  transpose_queries(q, heads, (heads + 31) / 32 * 32, dim, pairs);
}

// Scores of V3.2's indexer: the products of a block of rows with all heads as above, then relu, weights and
// the sum over the heads, whose lanes are added in pairs of halves.
void index_fp8_scores(const std::byte* rows, std::int64_t n_rows, const float* /*q*/,
                      const std::uint32_t* pairs, const float* weights, std::int64_t heads, std::int64_t dim,
                      float* scores) {
  const RowShape shape{RowFormat::fp8_f32, dim, 0};
  const std::int64_t padded = (heads + 31) / 32 * 32, stride = dim / 2 + 16;
  auto* by_row = scratch<std::uint32_t, 1>(kScoreRows * stride);
  auto* dots = scratch<float, 3>(kScoreRows * padded);
  auto* weight = scratch<float, 5>(padded);
  std::fill(std::copy_n(weights, heads, weight), weight + padded, 0.0F);
  for (std::int64_t first = 0; first < n_rows; first += kScoreRows) {
    const std::int64_t count = std::min<std::int64_t>(kScoreRows, n_rows - first);
    for (std::int64_t j = 0; j < kScoreRows; ++j) {
      const std::byte* row = rows + (first + std::min(j, count - 1)) * shape.bytes();
      unpack_row(shape, {shape.format, row}, reinterpret_cast<std::uint16_t*>(by_row + j * stride));
    }
    for (std::int64_t h = 0; h < padded; h += 32)
      score_tile<2>(by_row, stride, pairs + h, padded, dim / 2, true, dots + h);
    for (std::int64_t j = 0; j < count; ++j) {
      __m512 sum = _mm512_setzero_ps();
      for (std::int64_t h = 0; h < padded; h += 16) {
        // max(dot, 0) is its second operand for a NaN.
        const __m512 dot = _mm512_max_ps(_mm512_loadu_ps(dots + j * padded + h), _mm512_setzero_ps());
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(weight + h), dot, sum);
      }
      scores[first + j] = _mm512_reduce_add_ps(sum);
    }
  }
}

}  // namespace hadal::cpu::avx512bf16
HADAL_TARGET_END

#endif
