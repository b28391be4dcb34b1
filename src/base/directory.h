// Directories that belong to one user, and what is in them.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <hadal/error.h>

namespace hadal {

// Makes `path`, and what is missing above it, and closes it to others (mode 0700). Errors: io.
Status make_private_directory(const std::filesystem::path& path);

// The file `lock` in a directory, locked as long as this lives. The kernel gives it back however a process
// ends.
class DirectoryLock {
 public:
  // Where nothing can be written nobody is kept out. Errors: io: another process has it.
  static Result<DirectoryLock> take(const std::filesystem::path& directory);

  DirectoryLock(DirectoryLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  DirectoryLock& operator=(DirectoryLock&&) = delete;
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  ~DirectoryLock();

 private:
  explicit DirectoryLock(int fd) : fd_(fd) {}
  int fd_;
};

// The names in a directory, sorted. Errors: io.
Result<std::vector<std::string>> names_in(const std::filesystem::path& path);

}  // namespace hadal
