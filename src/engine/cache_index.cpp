#include "engine/cache_index.h"

#include <memory>
#include <utility>

#include <fmt/format.h>
#include <sqlite3.h>

namespace hadal {
namespace {

// WAL with synchronous=NORMAL: a killed process loses nothing, a power cut at most the last transactions,
// whose files the next scan of the directory finds again.
constexpr const char* kSchema =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA user_version=1;"
    "CREATE TABLE IF NOT EXISTS files(id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, last_used INTEGER NOT "
    "NULL);"
    "CREATE TABLE IF NOT EXISTS records(namespace BLOB NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
    " serial INTEGER PRIMARY KEY AUTOINCREMENT, UNIQUE(namespace, key));";

tl::unexpected<Error> sqlite_error(sqlite3* database, std::string_view what) {
  const int code = sqlite3_errcode(database) & 0xff;
  return fail(code == SQLITE_CORRUPT || code == SQLITE_NOTADB ? ErrorCode::corrupt : ErrorCode::io,
              fmt::format("index of the cache: cannot {}: {}", what, sqlite3_errmsg(database)));
}

class Statement {
 public:
  Statement(sqlite3* database, const char* sql) : database_(database) {
    sqlite3_prepare_v2(database, sql, -1, &statement_, nullptr);
  }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  ~Statement() { sqlite3_finalize(statement_); }

  Statement& bind(std::uint64_t value) {
    if (statement_ != nullptr) sqlite3_bind_int64(statement_, ++bound_, static_cast<sqlite3_int64>(value));
    return *this;
  }
  Statement& bind(std::string_view value) {
    if (statement_ != nullptr)
      sqlite3_bind_blob64(statement_, ++bound_, value.data(), value.size(), SQLITE_TRANSIENT);
    return *this;
  }
  // Whether there is a row; an error when there is neither a row nor an end.
  Result<bool> next(std::string_view what) {
    const int code = statement_ == nullptr ? SQLITE_ERROR : sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return sqlite_error(database_, what);
  }
  Status run(std::string_view what) {
    HADAL_RETURN_IF_ERROR(next(what));
    return {};
  }
  std::uint64_t number(int column) const {
    return static_cast<std::uint64_t>(sqlite3_column_int64(statement_, column));
  }
  std::string_view bytes(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    return {static_cast<const char*>(data),
            static_cast<std::size_t>(sqlite3_column_bytes(statement_, column))};
  }

 private:
  sqlite3* database_;
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

}  // namespace

Result<CacheIndex> CacheIndex::open_file(const std::string& path, int flags) {
  sqlite3* database = nullptr;
  const int opened = sqlite3_open_v2(path.c_str(), &database, flags, nullptr);
  CacheIndex index(database);
  if (opened != SQLITE_OK) return sqlite_error(database, fmt::format("open {}", path));
  sqlite3_busy_timeout(database, 2000);
  if ((flags & SQLITE_OPEN_READONLY) == 0) HADAL_RETURN_IF_ERROR(index.execute(kSchema));
  return index;
}

Result<CacheIndex> CacheIndex::open(const std::filesystem::path& directory, bool writable) {
  const std::filesystem::path path = directory / "index.sqlite";
  const int access = writable ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY;
  auto index = open_file(path.string(), access | SQLITE_OPEN_NOFOLLOW);
  if (index && writable) {
    std::error_code ignored;  // the directory is closed to others anyway
    std::filesystem::permissions(
        path, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write, ignored);
  }
  return index;
}

Result<CacheIndex> CacheIndex::in_memory() {
  return open_file(":memory:", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
}

Status CacheIndex::move_aside(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "index.sqlite";
  std::filesystem::path aside = path;
  aside += ".broken";
  std::error_code error;
  std::filesystem::rename(path, aside, error);
  if (error)
    return fail(ErrorCode::io,
                fmt::format("{}: broken, and cannot be moved aside: {}", path.string(), error.message()));
  for (const char* suffix : {"-wal", "-shm"}) {
    std::filesystem::path extra = path;
    extra += suffix;
    std::filesystem::remove(extra, error);
  }
  return {};
}

CacheIndex::CacheIndex(CacheIndex&& other) noexcept : database_(std::exchange(other.database_, nullptr)) {}

CacheIndex::~CacheIndex() {
  sqlite3_close_v2(database_);
}

Status CacheIndex::execute(const char* sql) const {
  if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) == SQLITE_OK) return {};
  return sqlite_error(database_, "make its tables");
}

Status CacheIndex::put_file(std::uint64_t id, std::int64_t bytes, std::uint64_t last_used) {
  return Statement(database_, "INSERT OR REPLACE INTO files VALUES(?, ?, ?)")
      .bind(id)
      .bind(static_cast<std::uint64_t>(bytes))
      .bind(last_used)
      .run("add a file");
}

Status CacheIndex::remove_file(std::uint64_t id) {
  return Statement(database_, "DELETE FROM files WHERE id = ?").bind(id).run("remove a file");
}

Status CacheIndex::set_last_used(std::uint64_t id, std::uint64_t clock) {
  return Statement(database_, "UPDATE files SET last_used = ? WHERE id = ?")
      .bind(clock)
      .bind(id)
      .run("mark a use");
}

Status CacheIndex::for_each_file(const std::function<void(std::uint64_t, std::uint64_t)>& visit) const {
  Statement rows(database_, "SELECT id, last_used FROM files");
  for (;;) {
    HADAL_ASSIGN_OR_RETURN(const bool more, rows.next("read files"));
    if (!more) return {};
    visit(rows.number(0), rows.number(1));
  }
}

Status CacheIndex::put_record(std::string_view name_space, std::string_view key, std::string_view value) {
  return Statement(database_, "INSERT OR REPLACE INTO records(namespace, key, value) VALUES(?, ?, ?)")
      .bind(name_space)
      .bind(key)
      .bind(value)
      .run("add a record");
}

Status CacheIndex::for_each_record(
    const std::function<void(std::string_view, std::string_view, std::string_view)>& visit) const {
  Statement rows(database_, "SELECT namespace, key, value FROM records ORDER BY serial");
  for (;;) {
    HADAL_ASSIGN_OR_RETURN(const bool more, rows.next("read records"));
    if (!more) return {};
    visit(rows.bytes(0), rows.bytes(1), rows.bytes(2));
  }
}

Status CacheIndex::keep_newest_records(std::int64_t count) {
  return Statement(
             database_,
             "DELETE FROM records WHERE serial <= (SELECT serial FROM records ORDER BY serial DESC LIMIT 1 "
             "OFFSET ?)")
      .bind(static_cast<std::uint64_t>(count))
      .run("remove old records");
}

}  // namespace hadal
