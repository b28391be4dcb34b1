// Byte pair encoding of one piece: start from its bytes' ids; while some adjacent pair has a merge, replace
// the pair of the lowest rank (the leftmost, if it occurs more than once) by the merge's result.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace hadal {

// Bounds that make a pair of ids and a rank fit in one 64-bit slot, and leave all ones for an empty one.
constexpr int kTokenIdBits = 21;
constexpr std::int32_t kMaxTokens = (std::int32_t{1} << kTokenIdBits) - 1;
constexpr std::int32_t kMaxMerges = std::int32_t{1} << (64 - 2 * kTokenIdBits - 1);

// All merges: a flat hash table from a pair of ids to the merge's rank, and what each gives.
class Merges {
 public:
  static constexpr std::int32_t kNone = INT32_MAX;  // above every rank, so that a minimum passes over it

  // Room for `n_merges`, at most kMaxMerges.
  explicit Merges(std::size_t n_merges = 0);

  // Adds the merge of the next rank. False, and nothing done, if the pair has one already.
  bool add(std::int32_t left, std::int32_t right, std::int32_t result);

  std::size_t size() const { return results_.size(); }

  // kNone if the pair has no merge.
  std::int32_t rank(std::int32_t left, std::int32_t right) const {
    const std::uint64_t key = key_of(left, right);
    for (std::size_t i = slot_of(key);; i = (i + 1) & mask_) {
      const std::uint64_t slot = slots_[i];
      if (slot >> kRankBits == key)
        return static_cast<std::int32_t>(slot & ((std::uint64_t{1} << kRankBits) - 1));
      if (slot == kEmpty) return kNone;
    }
  }

  std::int32_t result(std::int32_t rank) const { return results_[static_cast<std::size_t>(rank)]; }

 private:
  static constexpr int kRankBits = 64 - 2 * kTokenIdBits;
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};

  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(left) << kTokenIdBits | static_cast<std::uint64_t>(right);
  }
  std::size_t slot_of(std::uint64_t key) const {
    return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15u) >> shift_);  // Fibonacci hashing
  }

  int shift_;
  std::size_t mask_;
  std::vector<std::uint64_t> slots_;   // (left, right, rank), at most half of them taken
  std::vector<std::int32_t> results_;  // by rank
};

// Immutable; any number of threads may encode, each with its own scratch.
class BytePairEncoder {
 public:
  struct Scratch {
    std::vector<std::int32_t> ids;
    std::vector<std::int32_t> ranks;
    std::vector<std::uint32_t> next;
    std::vector<std::uint32_t> previous;
    std::vector<std::uint64_t> queue;
  };

  // `byte_ids`: the id of each byte.
  BytePairEncoder(const std::array<std::int32_t, 256>& byte_ids, Merges merges);

  // Appends the ids of `piece`, which is not empty and has less than 2^32 bytes.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;

 private:
  void encode_short(std::string_view piece, std::vector<std::int32_t>& out) const;
  void encode_long(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;

  std::int32_t rank_of_bytes(char left, char right) const {
    return byte_pair_ranks_[static_cast<std::size_t>(static_cast<std::uint8_t>(left)) << 8 |
                            static_cast<std::uint8_t>(right)];
  }

  std::array<std::int32_t, 256> byte_ids_;
  Merges merges_;
  std::vector<std::int32_t> byte_pair_ranks_;  // [256 * 256]: merges_.rank of two single bytes
};

}  // namespace hadal
