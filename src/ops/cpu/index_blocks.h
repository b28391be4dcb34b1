// What the FP4 indexer kernels read: queries and index rows as small integers, laid out for a dot product of
// four bytes per 32-bit lane with a row in every lane.
//
// A doubled E2M1 number is one of 0, +-1, 2, 3, 4, 6, 8, 12. Where the scales of a head's (or row's) blocks
// of 32 lie within a factor of four, all its entries become integers of magnitude at most 48 over the
// smallest scale, and the whole q . row is one exact integer below dim * 48 * 48, which float32 holds as well
// (dim <= kIndexMostDim). Its powers of two leave the sum over the heads: the head's joins its weight and the
// row's the finished score, neither of which changes a rounding, so the bits are those of the definition
// (IndexSelectParams). That is the plain case, nearly always: a block's scale follows its largest entry, and
// the Hadamard rotation levels those. In the other case the blocks are summed one after the other in float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hadal::cpu {

constexpr std::int64_t kIndexTileRows = 16;   // lanes
constexpr std::int64_t kIndexBlockTiles = 4;  // unpacked and scored at once: 8 KB at dim 128
constexpr std::int64_t kIndexBlockRows = kIndexBlockTiles * kIndexTileRows;
constexpr std::int64_t kIndexHeads = 4;   // heads that are scored together; queries are padded to that
constexpr std::int64_t kIndexBlock = 32;  // entries per scale
constexpr std::int64_t kIndexMostDim = 1024;

// Row codes are kept unsigned: the integer plus kIndexOffset. A query's sums start at -kIndexOffset times the
// sum of its codes, which takes the offset away again.
constexpr std::int32_t kIndexOffset = 48;
constexpr std::uint8_t kIndexSpread = 2;  // log2 of the largest ratio of a plain head's or row's scales

// Scales and weights of the plain case are far from the ends of float32's range, so that moving powers of two
// past a rounding is exact: E8M0 bytes within 20 of 127, weights 0 or within [2^-40, 2^40] in magnitude.
constexpr int kIndexScaleRange = 20;

// A token's queries. Codes are in the order of the unpacked rows: of each eight entries the even ones, then
// the odd.
struct IndexQuery {
  std::int64_t heads = 0;  // padded with zeros to a multiple of kIndexHeads
  std::int64_t dim = 0;
  bool plain = false;                         // weights and scales in the plain case's range
  const std::uint8_t* plain_group = nullptr;  // [heads / kIndexHeads]
  const std::int8_t* codes = nullptr;         // [heads, dim]
  const std::int32_t* start = nullptr;        // [heads]: -kIndexOffset * sum of the codes
  const float* scaled_weight = nullptr;       // [heads]: weight * scale, for plain groups
  const float* weight = nullptr;              // [heads]
  const std::int32_t* block_start = nullptr;  // [heads, dim / 32]
  const float* block_scale = nullptr;         // [heads, dim / 32]: what a code counts
};

// kIndexBlockRows rows.
struct IndexRowBlock {
  std::int64_t dim = 0;
  bool plain = false;
  std::uint8_t* codes = nullptr;  // [tile][dim / 4][row][4]
  float* scale = nullptr;         // [tile][row]: what a code counts in a plain block,
  float* block_scale = nullptr;   // [tile][dim / 32][row]: and in another
};

}  // namespace hadal::cpu
