// Remembers the ids of short pieces: most pieces of a text are words seen a moment ago. A direct-mapped table
// of bounded size, one cache line per entry; a newcomer replaces what its place held. For one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace hadal {

class WordCache {
 public:
  static constexpr std::size_t kMaxBytes = 23;  // of a piece that is remembered
  static constexpr std::size_t kMaxIds = 9;

  // The bytes of a piece, padded with zeros, and its length in the last byte.
  struct Key {
    std::array<std::uint64_t, 3> words;
    bool operator==(const Key&) const = default;
  };

  // `piece` has at most kMaxBytes.
  static Key key_of(std::string_view piece) {
    std::array<char, 24> bytes{};
    std::memcpy(bytes.data(), piece.data(), piece.size());
    bytes[23] = static_cast<char>(piece.size());
    Key key;
    std::memcpy(key.words.data(), bytes.data(), bytes.size());
    return key;
  }

  // The ids of the piece, empty if it is not remembered. Valid until the next insert.
  std::span<const std::int32_t> find(const Key& key) const {
    const Entry& entry = entries_[slot_of(key)];
    if (!(entry.key == key)) return {};
    return {entry.ids.data(), entry.n_ids};
  }

  void insert(const Key& key, std::span<const std::int32_t> ids) {
    if (ids.size() > kMaxIds) return;
    Entry& entry = entries_[slot_of(key)];
    entry.key = key;
    entry.n_ids = static_cast<std::uint32_t>(ids.size());
    std::memcpy(entry.ids.data(), ids.data(), ids.size_bytes());
  }

 private:
  static constexpr int kLogEntries = 14;  // 1 MiB

  struct alignas(64) Entry {
    Key key{};  // all zeros: free (a piece's key has its length in it)
    std::array<std::int32_t, kMaxIds> ids{};
    std::uint32_t n_ids = 0;
  };
  static_assert(sizeof(Entry) == 64);

  static std::size_t slot_of(const Key& key) {
    constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15u;
    const std::uint64_t mixed = ((key.words[0] * kOdd ^ key.words[1]) * kOdd ^ key.words[2]) * kOdd;
    return static_cast<std::size_t>((mixed ^ mixed >> 29) * kOdd >> (64 - kLogEntries));
  }

  std::vector<Entry> entries_ = std::vector<Entry>(std::size_t{1} << kLogEntries);
};

}  // namespace hadal
