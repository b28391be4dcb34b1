// The disk tier of the prefix cache: snapshots as payload files (engine/cache_file.h, docs/cache_format.md)
// in one directory, their index in SQLite, and beside them small records that must live as long as they do.
//
// All work is done by one thread in the order it was asked for; results are collected with poll(). Whatever
// happens to the process, the directory holds only whole files: a file is written under another name, flushed
// and renamed before the index hears of it, and removed after the index has forgotten it. Files that the
// index does not know are read for their headers when the directory is opened, so a lost index is rebuilt.
// A disk that is full or cannot be written costs what would have been kept, never a request: what lies there
// is used, and one notice says so until a write succeeds again.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <hadal/error.h>

#include "base/directory.h"
#include "base/log.h"
#include "engine/cache_file.h"
#include "model/sequence_state.h"

namespace hadal {

class CacheIndex;

// How window rows are kept on disk (the report, 3.5.1).
enum class WindowStrategy : std::uint8_t {
  periodic,  // with every snapshot
  full,      // with a snapshot at the end of every page of a prompt
  none,      // not at all: the last window x layers tokens are computed again from the compressed rows
};
Result<WindowStrategy> window_strategy_from_string(std::string_view name);

struct DiskCacheOptions {
  std::filesystem::path directory;
  std::int64_t budget_bytes = std::int64_t{10} << 30;
  std::uint64_t fingerprint = 0;  // of the model; files of another are left alone but never used
  WindowStrategy windows = WindowStrategy::periodic;
  std::size_t max_pending = 64;  // writes that may wait; more are not begun
  Notice notice;
};

struct DiskEntry {
  CacheFileHeader header;
  std::vector<std::int32_t> tokens;  // behind the parent's
  std::uint64_t last_used = 0;
  std::int64_t bytes = 0;
};

struct DiskResult {
  enum class Kind : std::uint8_t { stored, store_failed, loaded, load_failed, dropped };
  Kind kind;
  std::uint64_t id = 0;
  std::optional<SequenceState> state{};  // of `loaded`; of `stored` the one that was written, to be freed
  bool needs_windows = false;            // `loaded` without window rows
};

class DiskCache {
 public:
  // Creates the directory if need be. Errors: io: it cannot be made, closed to others or read, or another
  // process uses it.
  static Result<std::unique_ptr<DiskCache>> open(const StateLayout& layout, DiskCacheOptions options);
  ~DiskCache();  // does what has been asked for first
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  // What was found when the directory was opened, parents before children.
  const std::vector<DiskEntry>& entries() const { return found_; }
  void forget_entries() { found_ = {}; }
  WindowStrategy windows() const { return options_.windows; }

  // A new id for store(); never 0.
  std::uint64_t new_id();
  // Writes `state`, which has read the tokens of `parent` (0: none) and `tokens`. False if too much waits
  // already.
  bool store(std::uint64_t id, std::uint64_t parent, const std::string& name_space,
             std::vector<std::int32_t> tokens, SequenceState state);
  void load(std::uint64_t id);
  void use(std::uint64_t id, std::uint64_t clock);  // remembered at the next write
  std::vector<DiskResult> poll();
  // Called on the worker's thread whenever poll() has something.
  void set_wake(std::function<void()> wake);
  void flush();  // returns when nothing waits

  // Small records, newest last.
  struct Record {
    std::string name_space, key, value;
  };
  std::vector<Record> records() const { return records_; }
  void forget_records() { records_ = {}; }
  void put_record(Record record);

  struct Stats {
    std::int64_t files = 0, bytes = 0, budget = 0, pending = 0, stored = 0, loaded = 0, dropped = 0,
                 corrupt = 0;
  };
  Stats stats() const;

 private:
  struct Job {
    enum class Kind : std::uint8_t { store, load, record };
    Kind kind;
    std::uint64_t id = 0;
    std::uint64_t parent = 0;
    std::string name_space{};
    std::vector<std::int32_t> tokens{};
    std::optional<SequenceState> state{};
    Record record{};
  };
  struct Known {  // what the worker keeps of an entry
    CacheFileHeader header;
    std::uint64_t last_used = 0;
    std::int64_t bytes = 0;
    std::int64_t children = 0;
  };

  DiskCache(const StateLayout& layout, DiskCacheOptions options);
  Status open_index();
  Status read_index();
  Status scan();
  void remove_file(std::uint64_t id, std::string_view name, std::string_view why);
  void wrote(const Status& status, std::string_view what);
  void run();
  void do_store(Job& job);
  void do_load(const Job& job);
  Result<SequenceState> assemble(std::uint64_t id);
  void drop(std::uint64_t id);
  bool make_room(std::int64_t bytes, std::uint64_t keep);
  void give(DiskResult result);
  std::filesystem::path path_of(std::uint64_t id) const;

  const StateLayout& layout_;
  DiskCacheOptions options_;
  std::optional<DirectoryLock> lock_;
  std::vector<DiskEntry> found_;
  std::vector<Record> records_;

  // Of the worker.
  std::unique_ptr<CacheIndex> index_;
  bool failing_ = false;                              // the last write did, and that was said
  std::map<std::uint64_t, std::uint64_t> last_used_;  // by the index, while the directory is opened
  std::map<std::uint64_t, Known> known_;
  std::int64_t bytes_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Job> jobs_;
  std::size_t pending_stores_ = 0;
  bool busy_ = false, stop_ = false;
  std::vector<DiskResult> results_;
  std::map<std::uint64_t, std::uint64_t> uses_;
  std::function<void()> wake_;
  Stats stats_;
  std::uint64_t id_seed_ = 0, ids_ = 0;

  std::thread thread_;
};

}  // namespace hadal
