#include "base/directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

namespace hadal {

Status make_private_directory(const std::filesystem::path& path) {
  const auto failed = [&path](const char* what, const std::string& why) {
    return fail(ErrorCode::io, fmt::format("{}: cannot {}: {}", path.string(), what, why));
  };
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return failed("make this directory", error.message());
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return failed("look at it", std::strerror(errno));
  if (!S_ISDIR(info.st_mode)) return failed("use it", "it is not a directory");
  // One that is closed already may lie on a disk that cannot be written.
  if ((info.st_mode & 0777) != 0700 && ::chmod(path.c_str(), 0700) != 0)
    return failed("close it to others", std::strerror(errno));
  return {};
}

Result<DirectoryLock> DirectoryLock::take(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "lock";
  DirectoryLock lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (lock.fd_ >= 0 && ::flock(lock.fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return fail(ErrorCode::io,
                fmt::format("{}: another process of hadal uses this directory", directory.string()));
  return lock;
}

DirectoryLock::~DirectoryLock() {
  if (fd_ >= 0) ::close(fd_);
}

Result<std::vector<std::string>> names_in(const std::filesystem::path& path) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator at(path, error);
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error))
    names.push_back(at->path().filename().string());
  if (error)
    return fail(ErrorCode::io,
                fmt::format("{}: cannot read this directory: {}", path.string(), error.message()));
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace hadal
