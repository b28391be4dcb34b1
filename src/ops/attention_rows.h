// The rows that one token attends to, oldest first: its window, then its compressed rows. That order is the
// order of every sum over them and depends on the token's place in its sequence alone: not on which rows came
// with this batch and which are already in the state.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace hadal {

class AttentionRows {
 public:
  struct Row {
    RowFormat format;
    const std::byte* data;
  };

  AttentionRows(const SparseAttentionParams& p, std::int64_t t)
      : row_(p.row),
        segment_(*std::find_if(p.segments.begin(), p.segments.end(),
                               [t](const AttentionSegment& s) { return t < s.begin + s.count; })),
        fresh_(p.kv),
        window_rows_(p.window_rows) {
    const std::int64_t position = segment_.start + t - segment_.begin;
    oldest_ = std::max<std::int64_t>(0, position - window_rows_ + 1);
    window_ = position + 1 - oldest_;
    if (!p.visible.empty()) compressed_ = p.visible[static_cast<std::size_t>(t)];
    if (p.selected != nullptr) {
      selected_ = p.selected + t * p.k;
      compressed_ = std::min(p.k, compressed_);
    }
  }

  std::int64_t count() const { return window_ + compressed_; }

  Row operator[](std::int64_t j) const {
    if (j < window_) {
      const std::int64_t position = oldest_ + j;
      if (position < segment_.start)
        return {row_.format, segment_.window + position % window_rows_ * row_.bytes()};
      const float* fresh = fresh_ + (segment_.begin + position - segment_.start) * row_.dim;
      return {RowFormat::f32, reinterpret_cast<const std::byte*>(fresh)};
    }
    const std::int64_t b = selected_ != nullptr ? selected_[j - window_] : j - window_;
    const PagedRows& rows = segment_.compressed;
    return {row_.format, rows.page_of(b) + b % rows.per_page * row_.bytes()};
  }

 private:
  const RowShape& row_;
  const AttentionSegment& segment_;
  const float* fresh_;
  std::int64_t window_rows_;
  std::int64_t oldest_ = 0;  // position of the first row
  std::int64_t window_ = 0, compressed_ = 0;
  const std::int32_t* selected_ = nullptr;
};

}  // namespace hadal
