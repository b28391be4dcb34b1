// Routed experts that live on disk: a fixed number of slots in memory, filled by reader threads while the
// model computes, and emptied by how much an expert has been used (docs/memory.md).
//
// One thread, that of the forward, calls everything here; the readers are the cache's own.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <hadal/error.h>

#include "base/anonymous_memory.h"
#include "base/direct_file.h"
#include "model/file_ranges.h"
#include "ops/linear.h"

namespace hadal {

// An expert on disk. `shape` says everything about its matrices but where they are; `at` is where a slot that
// holds it has w1, w2, w3, each weights then scales.
struct StoredExpert {
  Expert shape;
  std::vector<FilePiece> pieces;
  std::vector<FileRange> ranges;
  std::array<std::uint64_t, 6> at{};
  std::uint64_t bytes = 0;  // of a slot for it
};

class ExpertCache {
 public:
  struct Statistics {
    std::int64_t hits = 0;             // wanted, and in memory from earlier use
    std::int64_t prefetch_hits = 0;    // wanted, and read or being read because it was predicted
    std::int64_t misses = 0;           // wanted, and only then read
    std::int64_t hit_bytes_read = 0;   // by those predictions that were right
    std::int64_t miss_bytes_read = 0;  // for the misses
    std::int64_t bytes_read = 0;       // all of it, wrong predictions included
    std::int64_t predicted = 0;        // experts predicted for a layer (hash layers are known, not predicted)
    std::int64_t predicted_right = 0;
    double read_seconds = 0;  // during which at least one read was under way
    double wait_seconds = 0;  // during which the forward had nothing to compute

    Statistics since(const Statistics& earlier) const;
  };

  // `experts` [blocks * per_block]; the files are those that their ranges number. `k` experts serve a token.
  static Result<std::unique_ptr<ExpertCache>> open(std::span<const std::filesystem::path> files,
                                                   std::vector<StoredExpert> experts, std::int64_t per_block,
                                                   std::int64_t k, std::int64_t slots);
  // The least number of slots: those of one token, and as many to read ahead.
  static std::int64_t least_slots(std::int64_t k) { return 2 * k; }
  static constexpr int kReaders = 8;

  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;
  ~ExpertCache();

  // A forward of n_tokens begins. `cancelled` is asked while it waits for a read.
  void begin_forward(std::int64_t n_tokens, const std::function<bool()>& cancelled);

  // The block now computed wants these experts (any order, repeated per token): those absent are read, lowest
  // id first, which is the order in which next() hands them out.
  void want(std::int64_t block, std::span<const std::int32_t> indices);
  struct Wave {
    std::span<const Expert>
        experts;  // [per_block]: those of the wave have weights; valid until the next call
    bool last = false;
  };
  // The next of the wanted experts, ascending, as many as are in memory; waits for at least one. Errors: io,
  // and corrupt for a weight that is not finite, naming file and tensor; cancelled. After an error nothing is
  // wanted any more.
  Result<Wave> next();
  // After the last wave: its experts may leave again.
  void finish();

  // Reads ahead, while no wanted expert is left to read, what a block will want: `certain` if that is known,
  // else a prediction, best first, which is counted and followed only as long as predictions turn out right.
  void prefetch(std::int64_t block, std::span<const std::int32_t> experts, bool certain);
  // As many predictions as prefetch takes.
  std::int64_t prefetch_limit() const { return prefetch_limit_; }

  Statistics statistics() const;
  std::int64_t slots() const { return static_cast<std::int64_t>(slots_.size()); }
  std::int64_t slots_used() const;
  std::int64_t slot_bytes() const { return static_cast<std::int64_t>(slot_bytes_); }
  std::int64_t n_experts() const { return static_cast<std::int64_t>(experts_.size()); }
  bool direct() const;  // whether all files are read past the page cache

  // What the disk gives: reads `count` randomly chosen experts, as many at a time as there are readers, into
  // the memory of slots that it empties for that. Bytes per second. Between forwards only.
  Result<double> measure_disk(std::int64_t count, std::uint64_t seed);

 private:
  enum class Where : std::uint8_t { disk, queued, loading, memory };
  struct Entry {
    Where where = Where::disk;
    bool wanted = false;                // by the block now computed, and not handed out yet
    bool in_use = false;                // by the wave that is out
    bool soon = false;                  // prefetched for a block still to come
    bool prefetched = false;            // read by prefetch, and not wanted since
    bool dropped = false;               // while loading: no more pieces are begun
    std::int32_t begun = 0, ended = 0;  // pieces, while loading
    std::int32_t slot = -1;
    double key = kNever;  // of use; see touch()
  };
  static constexpr double kNever = -1e300;

  ExpertCache(std::vector<DirectFile> files, std::vector<StoredExpert> experts, std::int64_t per_block,
              std::int64_t k, std::int64_t slots, std::uint64_t slot_bytes, AnonymousMemory memory);

  void reader_main();
  // What one reader reads at a time.
  struct Piece {
    std::int32_t id = -1;
    std::size_t file = 0;
    std::uint64_t offset = 0, bytes = 0;
    std::uint64_t memory = 0;  // within the slot
  };
  Piece piece(std::int32_t id, std::int32_t index) const;
  static std::int32_t count_pieces(const StoredExpert& expert);
  Status read(const Piece& piece, std::byte* slot) const;
  Status check(const Piece& piece, const std::byte* slot) const;
  // The rest is called under the mutex.
  std::optional<Piece> start_piece();
  void drop_load(std::int32_t id);
  void settle(std::int32_t id);
  std::int32_t take_slot(std::int32_t id, bool wanted);
  void touch(Entry& entry, std::int64_t uses) const;
  void release_wave();
  void forget_wanted();
  std::byte* slot_memory(std::int32_t slot) const {
    return memory_.data() + static_cast<std::size_t>(slot) * slot_bytes_;
  }

  const std::vector<DirectFile> files_;
  const std::vector<StoredExpert> experts_;
  const std::int64_t per_block_, prefetch_limit_;
  const std::uint64_t slot_bytes_;
  std::vector<std::int32_t> pieces_;  // [n_experts]
  const AnonymousMemory memory_;

  // All below under the mutex.
  mutable std::mutex mutex_;
  std::condition_variable work_;     // for the readers: something to read, or a slot to read it to
  std::condition_variable arrived_;  // for the forward
  bool stop_ = false;
  std::vector<Entry> entries_;                              // [n_experts]
  std::vector<std::int32_t> slots_;                         // the entry in each slot; -1: none
  std::deque<std::int32_t> wanted_queue_, prefetch_queue_;  // not begun, in no slot
  std::deque<std::int32_t> wanted_loads_, ahead_loads_;     // with pieces not yet begun
  std::vector<std::int32_t> wanted_;                        // of the block, ascending
  std::vector<std::int64_t> uses_;                          // of each expert of the block by its tokens
  std::size_t handed_out_ = 0;                              // of wanted_
  std::size_t wave_begin_ = 0;   // of wanted_: the wave that is out is [wave_begin_, handed_out_)
  std::vector<Expert> wave_;     // [per_block]
  std::vector<bool> predicted_;  // [n_experts], for the block that comes next
  double precision_ = 1;         // share of predictions that were right, lately
  std::int64_t soon_ = 0;        // entries with that flag
  int reading_ = 0;              // pieces under way
  std::chrono::steady_clock::time_point reading_since_;
  double clock_ = 0;  // tokens so far
  std::function<bool()> cancelled_;
  std::optional<Error> error_;  // of a wanted read
  Statistics statistics_;

  std::vector<std::thread> readers_;
};

}  // namespace hadal
