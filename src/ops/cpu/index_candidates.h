// The k best of a stream of scores. A row is one 64-bit key: its score, best smallest, above its number, so
// that keys ascend in the order in which rows are preferred (IndexSelectParams) and no two are equal.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

namespace hadal::cpu {

inline std::uint64_t candidate_key(float score, std::int64_t row) {
  // -0 becomes 0 and a NaN minus infinity. Of floats with a set sign the larger bits are the smaller number.
  const float ordered = score == score ? score + 0.0F : -std::numeric_limits<float>::infinity();
  const auto bits = std::bit_cast<std::uint32_t>(ordered);
  const std::uint32_t descending = (bits & 0x80000000U) != 0 ? bits : ~bits & 0x7fffffffU;
  return std::uint64_t{descending} << 32 | static_cast<std::uint32_t>(row);
}
inline float candidate_score(std::uint64_t key) {
  const auto descending = static_cast<std::uint32_t>(key >> 32);
  return std::bit_cast<float>((descending & 0x80000000U) != 0 ? descending : ~descending & 0x7fffffffU);
}
inline std::int32_t candidate_row(std::uint64_t key) {
  return static_cast<std::int32_t>(key & 0xffffffffU);
}

// Leaves the k smallest of n keys, in the order they had; scratch: [n]. Returns the k-th smallest.
inline std::uint64_t keep_best(std::uint64_t* keys, std::int64_t n, std::int64_t k, std::uint64_t* scratch) {
  std::copy_n(keys, n, scratch);
  std::nth_element(scratch, scratch + k - 1, scratch + n);
  const std::uint64_t last = scratch[k - 1];
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    keys[kept] = keys[i];
    kept += keys[i] <= last ? 1 : 0;
  }
  return last;
}

// Sees ascending rows and holds at most 2 k keys, ascending by row: whenever they are full the worse half
// goes, and rows no better than the worst of the rest need not come in.
class Candidates {
 public:
  Candidates() = default;
  Candidates(std::uint64_t* keys, std::uint64_t* scratch, std::int64_t k)
      : keys_(keys), scratch_(scratch), k_(k) {}

  void offer(const float* scores, std::int64_t first_row, std::int64_t count) {
    constexpr std::int64_t kAtOnce = 16;
    for (std::int64_t i = 0; i < count; i += kAtOnce) {
      const std::int64_t n = std::min(kAtOnce, count - i);
      if (full_ && n == kAtOnce) {  // the usual sixteen have nothing to offer
        int better = 0;
        for (std::int64_t j = 0; j < kAtOnce; ++j) better += scores[i + j] > threshold_ ? 1 : 0;
        if (better == 0) continue;
      }
      for (std::int64_t j = i; j < i + n; ++j) {
        // Equal scores lose to the earlier rows that are in.
        if (full_ && !(scores[j] > threshold_)) continue;
        keys_[n_++] = candidate_key(scores[j], first_row + j);
        if (n_ == 2 * k_) {
          threshold_ = candidate_score(keep_best(keys_, n_, k_, scratch_));
          n_ = k_;
          full_ = true;
        }
      }
    }
  }
  std::int64_t size() const { return n_; }

 private:
  std::uint64_t* keys_ = nullptr;     // [2 k]
  std::uint64_t* scratch_ = nullptr;  // [2 k]
  std::int64_t k_ = 0;
  std::int64_t n_ = 0;
  bool full_ = false;
  float threshold_ = 0;  // of the k-th best, once full_
};

}  // namespace hadal::cpu
