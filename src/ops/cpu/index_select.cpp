// Scores and top-k of the lightning indexer in one pass: the scores of a block of rows are met by the
// candidates of the token while they are in the first-level cache, and are gone.
//
// The work is cut into (block of tokens) x (range of rows). A block of rows is unpacked once for all tokens
// of a block. Each piece leaves the best of its rows for each of its tokens; since the preferred rows of the
// whole are among the preferred rows of its parts, the cut does not show in the result.
#include <algorithm>
#include <array>

#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/index_candidates.h"

namespace hadal {
namespace {

using cpu::kIndexBlockRows;
using cpu::kIndexTileRows;

constexpr std::int64_t kTokens = 32;   // of a piece: their queries, 9 KB each, share the second-level cache
constexpr std::int64_t kSlice = 1024;  // tokens at a time, so that scratch does not grow with the chunk

// What a thread needs beside the candidates, kept for its next piece.
struct ThreadScratch {
  Buffer<std::uint8_t> codes;
  Buffer<float> block_scale, scale, columns;
  Buffer<std::uint64_t> keys;

  cpu::IndexRowBlock block(std::int64_t dim) {
    const auto size = static_cast<std::size_t>(kIndexBlockRows * dim);
    if (codes.size() < size) {  // zeros: rows that do not exist are scored, and not offered
      codes = Buffer<std::uint8_t>(size);
      block_scale = Buffer<float>(size / cpu::kIndexBlock);
      scale = Buffer<float>(kIndexBlockRows);
    }
    return {dim, false, codes.data(), scale.data(), block_scale.data()};
  }
  // [dim][kIndexBlockRows], zeros at first for the same reason.
  float* columns_of_block(std::int64_t dim) {
    const auto size = static_cast<std::size_t>(kIndexBlockRows * dim);
    if (columns.size() < size) columns = Buffer<float>(size);
    return columns.data();
  }
  std::uint64_t* keys_of(std::int64_t n) {
    if (static_cast<std::int64_t>(keys.size()) < n)
      keys = Buffer<std::uint64_t>::uninitialised(static_cast<std::size_t>(n));
    return keys.data();
  }
};
ThreadScratch& thread_scratch() {
  static thread_local ThreadScratch scratch;
  return scratch;
}

// Rows of float32 as columns.
void transpose(const std::byte* const* tiles, std::int64_t n_rows, std::int64_t dim, float* to) {
  for (std::int64_t row = 0; row < n_rows; ++row) {
    const float* from =
        reinterpret_cast<const float*>(tiles[row / kIndexTileRows]) + row % kIndexTileRows * dim;
    for (std::int64_t i = 0; i < dim; ++i) to[i * kIndexBlockRows + row] = from[i];
  }
}

std::int64_t fp8_query_size(const IndexSelectParams& p) {
  return (p.heads + 31) / 32 * 32 * (p.dim / 2);
}

// Where the tiles of rows [row, row + n_rows) are; row is a tile's first. No tile lies across a page
// boundary.
void list_tiles(const PagedRows& rows, std::int64_t row, std::int64_t n_rows, const std::byte** tiles) {
  std::int64_t page = row / rows.per_page, i = row % rows.per_page;
  for (std::int64_t tile = 0; tile * kIndexTileRows < n_rows; ++tile) {
    tiles[tile] = rows.pages[page] + rows.offset + i * rows.shape.bytes();
    i += kIndexTileRows;
    if (i == rows.per_page) i = 0, ++page;
  }
}

// The rows of a page are a few lines among those of all other layers, so that no hardware prefetcher knows
// where the next ones are. While a block is scored there is time to fetch them. Inline because g++ 12 takes a
// function that only prefetches for one without effect and drops its calls.
[[gnu::always_inline]] inline void prefetch(const PagedRows& rows, std::int64_t row, std::int64_t end) {
  const std::byte* tiles[cpu::kIndexBlockTiles];
  const std::int64_t n_rows = std::min(kIndexBlockRows, end - row);
  list_tiles(rows, row, n_rows, tiles);
  const std::int64_t bytes = kIndexTileRows * rows.shape.bytes();
  for (std::int64_t i = 0; i * kIndexTileRows < n_rows; ++i) {
    for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(tiles[i] + at);
  }
}

}  // namespace

void CpuBackend::block_scores(const IndexSelectParams& p, std::int64_t t, const std::byte* const* tiles,
                              const cpu::IndexRowBlock& block, const float* columns, std::int64_t n_rows,
                              float* scores) const {
  const float *q = p.q + t * p.heads * p.dim, *weights = p.weights + t * p.heads;
  switch (p.rows.shape.format) {
    case RowFormat::fp4_tiles:
      return kernels_.index_scores(block, index_.queries[t], scores);
    case RowFormat::fp8_f32: {
      // Only kernels that multiply pairs have pairs.
      const auto* pairs = index_.pairs.empty() ? nullptr : index_.pairs.data() + t * fp8_query_size(p);
      for (std::int64_t i = 0; i < n_rows; i += kIndexTileRows) {
        kernels_.index_fp8_scores(tiles[i / kIndexTileRows], std::min(kIndexTileRows, n_rows - i), q, pairs,
                                  weights, p.heads, p.dim, scores + i);
      }
      return;
    }
    default:
      return kernels_.index_row_scores(columns, q, weights, p.heads, p.dim, scores);
  }
}

void CpuBackend::index_select(const IndexSelectParams& p) {
  const bool fp4 = p.rows.shape.format == RowFormat::fp4_tiles;
  const bool fp8 = p.rows.shape.format == RowFormat::fp8_f32;
  if (p.dim % (fp8 ? 128 : 32) != 0 || p.dim > cpu::kIndexMostDim ||
      p.rows.per_page % cpu::kIndexTileRows != 0)
    return ref::index_select(p, pool_);
  for (std::int64_t begin = 0; begin < p.n_tokens; begin += kSlice) {
    const std::int64_t n = std::min(kSlice, p.n_tokens - begin);
    IndexSelectParams slice = p;
    slice.n_tokens = n;
    slice.q += begin * p.heads * p.dim;
    slice.weights += begin * p.heads;
    slice.visible = p.visible.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n));
    slice.indices += begin * p.k;
    if (fp4) {
      index_.queries.reserve(n, p.heads, p.dim);
      pool_.parallel_for(n, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) {
          index_.queries.set(t, slice.q + t * p.heads * p.dim, slice.weights + t * p.heads, p.heads);
        }
      });
    }
    if (fp8 && kernels_.index_fp8_query != nullptr) {
      const std::int64_t size = fp8_query_size(p);
      std::uint32_t* pairs = grow(index_.pairs, n * size);
      pool_.parallel_for(n, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t)
          kernels_.index_fp8_query(slice.q + t * p.heads * p.dim, p.heads, p.dim, pairs + t * size);
      });
    }
    index_select_slice(slice);
  }
}

void CpuBackend::index_select_slice(const IndexSelectParams& p) {
  const std::int64_t most = *std::max_element(p.visible.begin(), p.visible.end());
  const std::int64_t token_blocks = (p.n_tokens + kTokens - 1) / kTokens;
  // Some pieces per thread for balance, from many tokens or from ranges much longer than k, but one per
  // thread at least: of n rows in any order k * (1 + ln(n / k)) get among the candidates, in every range
  // anew.
  const std::int64_t threads = pool_.size();
  const std::int64_t balanced = (4 * threads + token_blocks - 1) / token_blocks;
  const std::int64_t wanted =
      std::max((threads + token_blocks - 1) / token_blocks, std::min(balanced, most / (64 * p.k)));
  const std::int64_t row_blocks = (most + kIndexBlockRows - 1) / kIndexBlockRows;
  const std::int64_t blocks_of_range = std::max<std::int64_t>(1, (row_blocks + wanted - 1) / wanted);
  const std::int64_t range = blocks_of_range * kIndexBlockRows;
  const std::int64_t ranges = std::max<std::int64_t>(1, (most + range - 1) / range);

  std::uint64_t* keys = grow(index_.keys, p.n_tokens * ranges * 2 * p.k);  // [T, ranges, 2 k]
  std::int64_t* counts = grow(index_.counts, p.n_tokens * ranges);         // [T, ranges]
  pool_.parallel_for(token_blocks * ranges, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t part = piece % ranges, first = piece / ranges * kTokens;
      const std::int64_t last = std::min(first + kTokens, p.n_tokens);
      index_candidates(p, first, last, part * range, (part + 1) * range, keys + part * 2 * p.k,
                       ranges * 2 * p.k, counts + part, ranges);
    }
  });

  pool_.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t kept = std::min(p.k, p.visible[static_cast<std::size_t>(t)]);
      // The ranges' candidates side by side, then the best of them; both orders ascend by row.
      std::uint64_t* own = keys + t * ranges * 2 * p.k;
      std::int64_t n = counts[t * ranges];
      for (std::int64_t part = 1; part < ranges; ++part) {
        const std::int64_t count = counts[t * ranges + part];
        std::copy_n(own + part * 2 * p.k, count, own + n);
        n += count;
      }
      if (n > kept && kept > 0) cpu::keep_best(own, n, kept, thread_scratch().keys_of(ranges * 2 * p.k));
      std::int32_t* out = p.indices + t * p.k;
      for (std::int64_t i = 0; i < kept; ++i) out[i] = cpu::candidate_row(own[i]);
      std::fill(out + kept, out + p.k, -1);
    }
  });
}

void CpuBackend::index_candidates(const IndexSelectParams& p, std::int64_t token_begin,
                                  std::int64_t token_end, std::int64_t row_begin, std::int64_t row_end,
                                  std::uint64_t* keys, std::int64_t keys_stride, std::int64_t* counts,
                                  std::int64_t counts_stride) {
  const bool fp4 = p.rows.shape.format == RowFormat::fp4_tiles;
  const bool fp8 = p.rows.shape.format == RowFormat::fp8_f32;
  ThreadScratch& scratch = thread_scratch();
  cpu::IndexRowBlock block = scratch.block(p.dim);
  float* columns = fp4 || fp8 ? nullptr : scratch.columns_of_block(p.dim);
  std::int64_t most = 0;
  std::array<cpu::Candidates, kTokens> candidates;
  for (std::int64_t t = token_begin; t < token_end; ++t) {
    most = std::max(most, p.visible[static_cast<std::size_t>(t)]);
    candidates[static_cast<std::size_t>(t - token_begin)] =
        cpu::Candidates(keys + t * keys_stride, scratch.keys_of(2 * p.k), p.k);
  }
  alignas(64) float scores[kIndexBlockRows];
  for (std::int64_t row = row_begin; row < std::min(row_end, most); row += kIndexBlockRows) {
    const std::int64_t n_rows = std::min(kIndexBlockRows, most - row);
    const std::byte* tiles[cpu::kIndexBlockTiles];
    list_tiles(p.rows, row, n_rows, tiles);
    if (fp4) kernels_.index_unpack(tiles, n_rows, block);
    if (columns != nullptr) transpose(tiles, n_rows, p.dim, columns);
    prefetch(p.rows, row + kIndexBlockRows, std::min(most, row_end));
    for (std::int64_t t = token_begin; t < token_end; ++t) {
      const std::int64_t seen = std::min(p.visible[static_cast<std::size_t>(t)] - row, kIndexBlockRows);
      if (seen <= 0) continue;
      block_scores(p, t, tiles, block, columns, seen, scores);
      candidates[static_cast<std::size_t>(t - token_begin)].offer(scores, row, seen);
    }
  }
  for (std::int64_t t = token_begin; t < token_end; ++t)
    counts[t * counts_stride] = candidates[static_cast<std::size_t>(t - token_begin)].size();
}

}  // namespace hadal
