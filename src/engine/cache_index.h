// The index of the disk cache: one SQLite database beside the payload files.
//
// What it says about a file is no more than a hint, checked against the file's own header; only when a file
// was last used, and the records, are in it alone. The only file of the room that knows SQLite.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include <hadal/error.h>

struct sqlite3;

namespace hadal {

class CacheIndex {
 public:
  // Opened for one process and one thread at a time. Errors: corrupt for what SQLite finds broken, now or
  // when rows are read; io.
  static Result<CacheIndex> open(const std::filesystem::path& directory, bool writable = true);
  // For a directory that cannot be written: nothing in it lasts.
  static Result<CacheIndex> in_memory();
  // A broken database becomes index.sqlite.broken, so that open() makes a new one.
  static Status move_aside(const std::filesystem::path& directory);

  CacheIndex(CacheIndex&& other) noexcept;
  CacheIndex& operator=(CacheIndex&&) = delete;
  CacheIndex(const CacheIndex&) = delete;
  CacheIndex& operator=(const CacheIndex&) = delete;
  ~CacheIndex();

  Status put_file(std::uint64_t id, std::int64_t bytes, std::uint64_t last_used);
  Status remove_file(std::uint64_t id);
  Status set_last_used(std::uint64_t id, std::uint64_t clock);
  Status for_each_file(const std::function<void(std::uint64_t id, std::uint64_t last_used)>& visit) const;

  Status put_record(std::string_view name_space, std::string_view key, std::string_view value);
  // Oldest first.
  Status for_each_record(
      const std::function<void(std::string_view, std::string_view, std::string_view)>& visit) const;
  Status keep_newest_records(std::int64_t count);

 private:
  explicit CacheIndex(sqlite3* database) : database_(database) {}
  static Result<CacheIndex> open_file(const std::string& path, int flags);
  Status execute(const char* sql) const;

  sqlite3* database_;
};

}  // namespace hadal
