// What the kernels of core attention read: AttentionRows (ops/attention_rows.h) on the device.
#pragma once

#include "ops/cuda/weights.cuh"

namespace hadal::cuda {

constexpr int kChunk = 64;  // rows that are summed before others are added

struct DeviceSegment {
  std::int64_t begin, count, start;
  const std::byte* window;
  const std::byte* const* pages;
  std::int64_t offset, per_page;
};

struct Attention {
  const float *q, *kv, *sink;
  float* out;
  float* scores;        // [T, heads, stride]: of rows, then their exponentials
  uint4* queries;       // fragments of q: [T, heads / 16, dim / 16, 3 parts, 32 lanes]
  uint4* exponentials;  // of the exponentials: [T, heads / 16, stride / 16, 3 parts, 32 lanes]
  float* sums;          // [T, heads]: denominators
  const DeviceSegment* segments;
  const std::int64_t* visible;  // null: no compressed rows
  const std::int32_t* selected;
  DeviceRowShape shape;
  std::int64_t n_tokens, n_segments, heads, window_rows, k, stride;
};

// AttentionRows (ops/attention_rows.h), here.
struct TokenRows {
  DeviceSegment segment;
  const float* fresh;
  const std::int32_t* selected;
  std::int64_t oldest, window, compressed, window_rows;

  __device__ TokenRows(const Attention& p, std::int64_t t) : fresh(p.kv), window_rows(p.window_rows) {
    std::int64_t low = 0, high = p.n_segments - 1;
    while (low < high) {
      const std::int64_t middle = (low + high + 1) / 2;
      if (p.segments[middle].begin <= t)
        low = middle;
      else
        high = middle - 1;
    }
    segment = p.segments[low];
    const std::int64_t position = segment.start + t - segment.begin;
    oldest = max(std::int64_t{0}, position - window_rows + 1);
    window = position + 1 - oldest;
    compressed = p.visible != nullptr ? p.visible[t] : 0;
    selected = nullptr;
    if (p.selected != nullptr) {
      selected = p.selected + t * p.k;
      compressed = min(p.k, compressed);
    }
  }
  __device__ std::int64_t count() const { return window + compressed; }
  // The row, and whether it is float32 whatever the state's format.
  __device__ const std::byte* row(const DeviceRowShape& shape, std::int64_t j, bool& is_fresh) const {
    is_fresh = false;
    if (j < window) {
      const std::int64_t position = oldest + j;
      if (position < segment.start) return segment.window + position % window_rows * shape.bytes;
      is_fresh = true;
      return reinterpret_cast<const std::byte*>(fresh +
                                                (segment.begin + position - segment.start) * shape.dim);
    }
    const std::int64_t b = selected != nullptr ? selected[j - window] : j - window;
    return segment.pages[b / segment.per_page] + segment.offset + b % segment.per_page * shape.bytes;
  }
};

}  // namespace hadal::cuda
