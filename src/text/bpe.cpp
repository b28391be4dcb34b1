#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "base/check.h"

namespace hadal {
namespace {

// Up to this length the lowest rank is found by looking at all of them, which beats any queue.
constexpr std::size_t kShort = 96;

constexpr std::int32_t kNone = Merges::kNone;

}  // namespace

Merges::Merges(std::size_t n_merges) {
  HADAL_CHECK(n_merges <= static_cast<std::size_t>(kMaxMerges));
  const std::size_t n_slots = std::bit_ceil(std::max<std::size_t>(2 * n_merges, 16));
  shift_ = 64 - std::countr_zero(n_slots);
  mask_ = n_slots - 1;
  slots_.assign(n_slots, kEmpty);
  results_.reserve(n_merges);
}

bool Merges::add(std::int32_t left, std::int32_t right, std::int32_t result) {
  HADAL_CHECK(2 * results_.size() < slots_.size());
  const std::uint64_t key = key_of(left, right);
  std::size_t i = slot_of(key);
  for (; slots_[i] != kEmpty; i = (i + 1) & mask_) {
    if (slots_[i] >> kRankBits == key) return false;
  }
  slots_[i] = key << kRankBits | results_.size();
  results_.push_back(result);
  return true;
}

BytePairEncoder::BytePairEncoder(const std::array<std::int32_t, 256>& byte_ids, Merges merges)
    : byte_ids_(byte_ids), merges_(std::move(merges)) {
  byte_pair_ranks_.reserve(256 * 256);
  for (const std::int32_t left : byte_ids_) {
    for (const std::int32_t right : byte_ids_) byte_pair_ranks_.push_back(merges_.rank(left, right));
  }
}

void BytePairEncoder::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
  if (piece.size() <= kShort) {
    encode_short(piece, out);
  } else {
    encode_long(piece, scratch, out);
  }
}

void BytePairEncoder::encode_short(std::string_view piece, std::vector<std::int32_t>& out) const {
  std::array<std::int32_t, kShort> ids;    // NOLINT: filled up to n
  std::array<std::int32_t, kShort> ranks;  // of the pairs (i, i + 1)
  std::size_t n = piece.size();
  ids[0] = byte_ids_[static_cast<std::uint8_t>(piece[0])];
  for (std::size_t i = 0; i + 1 < n; ++i) {
    ids[i + 1] = byte_ids_[static_cast<std::uint8_t>(piece[i + 1])];
    ranks[i] = rank_of_bytes(piece[i], piece[i + 1]);
  }
  while (n > 1) {
    std::int32_t lowest = kNone;
    for (std::size_t i = 0; i + 1 < n; ++i) lowest = std::min(lowest, ranks[i]);
    if (lowest == kNone) break;
    std::size_t at = 0;
    while (ranks[at] != lowest) ++at;
    ids[at] = merges_.result(lowest);
    std::copy(ids.begin() + at + 2, ids.begin() + n, ids.begin() + at + 1);
    if (at + 2 < n) std::copy(ranks.begin() + at + 2, ranks.begin() + n - 1, ranks.begin() + at + 1);
    --n;
    if (at > 0) ranks[at - 1] = merges_.rank(ids[at - 1], ids[at]);
    if (at + 1 < n) ranks[at] = merges_.rank(ids[at], ids[at + 1]);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + n);
}

// Pairs wait in a queue by (rank, position); an entry whose pair has changed since is dropped when it comes
// up. Time n log n, about 30 bytes of scratch per byte of the piece.
void BytePairEncoder::encode_long(std::string_view piece, Scratch& scratch,
                                  std::vector<std::int32_t>& out) const {
  const auto n = static_cast<std::uint32_t>(piece.size());
  auto& ids = scratch.ids;
  auto& ranks = scratch.ranks;
  auto& next = scratch.next;
  auto& previous = scratch.previous;
  auto& queue = scratch.queue;
  ids.resize(n);
  ranks.assign(n, kNone);  // of the pair (i, next[i]); kNone for what has been merged away
  next.resize(n);
  previous.resize(n);
  queue.clear();
  const auto entry = [](std::int32_t rank, std::uint32_t at) {
    return static_cast<std::uint64_t>(rank) << 32 | at;
  };
  for (std::uint32_t i = 0; i < n; ++i) {
    ids[i] = byte_ids_[static_cast<std::uint8_t>(piece[i])];
    next[i] = i + 1;
    previous[i] = i - 1;
    if (i + 1 == n) break;
    ranks[i] = rank_of_bytes(piece[i], piece[i + 1]);
    if (ranks[i] != kNone) queue.push_back(entry(ranks[i], i));
  }
  const auto first_out = std::greater<std::uint64_t>();  // the lowest entry on top
  std::make_heap(queue.begin(), queue.end(), first_out);
  const auto rank_again = [&](std::uint32_t at) {
    ranks[at] = next[at] < n ? merges_.rank(ids[at], ids[next[at]]) : kNone;
    if (ranks[at] == kNone) return;
    queue.push_back(entry(ranks[at], at));
    std::push_heap(queue.begin(), queue.end(), first_out);
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), first_out);
    const auto rank = static_cast<std::int32_t>(queue.back() >> 32);
    const auto at = static_cast<std::uint32_t>(queue.back());
    queue.pop_back();
    if (ranks[at] != rank) continue;
    const std::uint32_t gone = next[at];
    ids[at] = merges_.result(rank);
    next[at] = next[gone];
    ranks[gone] = kNone;
    if (next[at] < n) previous[next[at]] = at;
    rank_again(at);
    if (at > 0) rank_again(previous[at]);
  }
  for (std::uint32_t i = 0; i < n; i = next[i]) out.push_back(ids[i]);
}

}  // namespace hadal
