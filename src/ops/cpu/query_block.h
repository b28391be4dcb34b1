// The products of a block of queries with the rows that it may see: a thread's memory for them, and the four
// shapes that attention and the indexer need, forward and backward.
#pragma once

#include <vector>

#include "ops/cpu/packed_matrix.h"

namespace hadal::cpu {

class QueryBlock {
 public:
  explicit QueryBlock(const MatmulKernel& kernel) : kernel_(kernel) {}

  // `left` queries (tokens times heads) against `count` keys [count, dim], which must stay.
  void open(std::int64_t left, std::int64_t count, std::int64_t dim, const float* keys) {
    left_ = left;
    count_ = count;
    dim_ = dim;
    keys_ = keys;
    stride_ = (count + kernel_.b_width - 1) / kernel_.b_width * kernel_.b_width;
    right_ = PackedMatrix(kernel_, false, count, dim);
    right_words_.resize(static_cast<std::size_t>(right_.words()));
    right_.pack(keys, dim, false, right_words_.data());
  }
  std::int64_t left() const { return left_; }
  std::int64_t count() const { return count_; }
  // Of a row of scores: `count` rounded up to whole vectors.
  std::int64_t stride() const { return stride_; }

  // scores [left, stride] = x [left, dim] keys^T, 0 behind the last key
  void score(const float* x, float* scores) {
    const PackedMatrix a = pack_left(x, dim_, false, left_, dim_);
    for (std::int64_t k = 0; k < dim_; k += kMatmulDepth) {
      for (std::int64_t j = 0; j < right_.panels(); ++j) {
        for (std::int64_t i = 0; i < a.panels(); ++i) {
          kernel_.multiply(left_words_.data() + a.place(i, k), right_words_.data() + right_.place(j, k),
                           a.units_at(k), a.rows_of(i), kernel_.b_width,
                           scores + i * a.width() * stride_ + j * kernel_.b_width, stride_, k > 0);
        }
      }
    }
  }
  // out [left, dim] = p [left, stride] keys
  void mix_keys(const float* p, float* out) {
    product(pack_left(p, stride_, false, left_, count_), count_, keys_, out, false);
  }
  // out [count, dim] (+)= p^T [count, left] x [left, dim]
  void gather(const float* p, const float* x, float* out, bool accumulate) {
    product(pack_left(p, stride_, true, count_, left_), left_, x, out, accumulate);
  }

 private:
  PackedMatrix pack_left(const float* x, std::int64_t stride, bool transposed, std::int64_t rows,
                         std::int64_t depth) {
    const PackedMatrix a(kernel_, true, rows, depth);
    left_words_.resize(static_cast<std::size_t>(a.words()));
    a.pack(x, stride, transposed, left_words_.data());
    return a;
  }
  // out [rows of a, dim] (+)= a x [depth, dim]
  void product(const PackedMatrix& a, std::int64_t depth, const float* x, float* out, bool accumulate) {
    const PackedMatrix b(kernel_, false, dim_, depth);
    other_words_.resize(static_cast<std::size_t>(b.words()));
    b.pack(x, dim_, true, other_words_.data());
    multiply_panels(kernel_, a, left_words_.data(), 0, a.panels(), b, other_words_.data(), 0, b.panels(), out,
                    dim_, accumulate);
  }

  const MatmulKernel& kernel_;
  std::int64_t left_ = 0, count_ = 0, dim_ = 0, stride_ = 0;
  const float* keys_ = nullptr;
  PackedMatrix right_;
  std::vector<std::uint32_t> left_words_, right_words_, other_words_;
};

// Sequences are cut into blocks of this many queries.
inline std::int64_t queries_of_block(std::int64_t heads) {
  return std::clamp<std::int64_t>(64 / heads, 1, 64);
}
// Blocks of a sequence that leave gradients of rows in places of their own before these are added up. Fixed,
// as it is part of the order of sums.
inline constexpr std::int64_t kWaveBlocks = 16;

}  // namespace hadal::cpu
