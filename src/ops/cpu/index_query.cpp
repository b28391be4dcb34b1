#include "ops/cpu/index_query.h"

#include <algorithm>
#include <cmath>

#include "tensor/codec.h"

namespace hadal::cpu {
namespace {

template <class T>
void grow(Buffer<T>& buffer, std::int64_t n) {
  if (static_cast<std::int64_t>(buffer.size()) < n)
    buffer = Buffer<T>::uninitialised(static_cast<std::size_t>(n));
}

float absolute_maximum(const float* x) {
  float lane[8] = {};  // so that the loop has no chain to wait for
  for (std::int64_t i = 0; i < kIndexBlock; i += 8) {
    for (std::int64_t j = 0; j < 8; ++j) lane[j] = std::max(lane[j], std::fabs(x[i + j]));
  }
  return *std::max_element(lane, lane + 8);
}

// Entries of one block as integers, x * inverse, in the order of IndexQuery; returns their sum.
std::int32_t to_codes(const float* x, float inverse, std::int8_t* codes) {
  std::int32_t code[kIndexBlock], sum = 0;
  for (std::int64_t i = 0; i < kIndexBlock; ++i) code[i] = static_cast<std::int32_t>(x[i] * inverse);
  for (std::int64_t i = 0; i < kIndexBlock; ++i) sum += code[i];
  for (std::int64_t g = 0; g < kIndexBlock; g += 8) {
    for (std::int64_t j = 0; j < 4; ++j) {
      codes[g + j] = static_cast<std::int8_t>(code[g + 2 * j]);
      codes[g + 4 + j] = static_cast<std::int8_t>(code[g + 2 * j + 1]);
    }
  }
  return sum;
}

}  // namespace

void IndexQueries::reserve(std::int64_t n_tokens, std::int64_t heads, std::int64_t dim) {
  heads_ = (heads + kIndexHeads - 1) / kIndexHeads * kIndexHeads;
  dim_ = dim;
  const std::int64_t rows = n_tokens * heads_, blocks = rows * (dim / kIndexBlock);
  grow(views_, n_tokens);
  grow(plain_group_, rows / kIndexHeads);
  grow(codes_, rows * dim);
  grow(start_, rows);
  grow(scaled_weight_, rows);
  grow(weight_, rows);
  grow(block_start_, blocks);
  grow(block_scale_, blocks);
}

void IndexQueries::set(std::int64_t t, const float* q, const float* weights, std::int64_t heads) {
  const std::int64_t blocks = dim_ / kIndexBlock;
  std::uint8_t* plain_group = plain_group_.data() + t * (heads_ / kIndexHeads);
  std::int8_t* codes = codes_.data() + t * heads_ * dim_;
  std::int32_t* start = start_.data() + t * heads_;
  std::int32_t* block_start = block_start_.data() + t * heads_ * blocks;
  float* block_scale = block_scale_.data() + t * heads_ * blocks;
  float* weight = weight_.data() + t * heads_;
  float* scaled_weight = scaled_weight_.data() + t * heads_;

  std::fill_n(plain_group, heads_ / kIndexHeads, std::uint8_t{1});
  bool plain = true;
  for (std::int64_t h = 0; h < heads_; ++h) {
    if (h >= heads) {  // adds 0 * 0
      std::fill_n(codes + h * dim_, dim_, std::int8_t{0});
      std::fill_n(block_start + h * blocks, blocks, 0);
      std::fill_n(block_scale + h * blocks, blocks, 1.0F);
      start[h] = 0;
      weight[h] = scaled_weight[h] = 0;
      continue;
    }
    // A block of zeros has any scale.
    int low = 255, high = 0;
    int scale[kIndexMostDim / kIndexBlock];
    for (std::int64_t b = 0; b < blocks; ++b) {
      const float amax = absolute_maximum(q + h * dim_ + b * kIndexBlock);
      if (amax == 0) {
        scale[b] = 0;
        continue;
      }
      scale[b] = std::clamp<int>(e8m0_scale(amax, static_cast<float>(1.0 / 6)), 1, 252);
      low = std::min(low, scale[b]);
      high = std::max(high, scale[b]);
    }
    if (high == 0) low = high = 127;
    const bool plain_head = high - low <= kIndexSpread;
    std::int32_t total = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const int byte = plain_head || scale[b] == 0 ? low : scale[b];
      const float code_value = 0.5F * e8m0_to_f32(static_cast<std::uint8_t>(byte));
      const std::int64_t at = h * blocks + b;
      const std::int32_t sum =
          to_codes(q + h * dim_ + b * kIndexBlock, 1.0F / code_value, codes + h * dim_ + b * kIndexBlock);
      block_scale[at] = code_value;
      block_start[at] = -kIndexOffset * sum;
      total += sum;
    }
    start[h] = -kIndexOffset * total;
    weight[h] = weights[h];
    scaled_weight[h] = weights[h] * 0.5F * e8m0_to_f32(static_cast<std::uint8_t>(low));
    if (!plain_head) plain_group[h / kIndexHeads] = 0;
    const float magnitude = std::fabs(weights[h]);
    plain = plain && low >= 127 - kIndexScaleRange && high <= 127 + kIndexScaleRange &&
            (magnitude == 0 || (magnitude >= 0x1p-40F && magnitude <= 0x1p40F));
  }
  views_[static_cast<std::size_t>(t)] = {heads_, dim_,          plain,  plain_group, codes,
                                         start,  scaled_weight, weight, block_start, block_scale};
}

}  // namespace hadal::cpu
