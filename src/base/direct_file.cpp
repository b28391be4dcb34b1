#include "base/direct_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"

namespace hadal {

Result<DirectFile> DirectFile::open(const std::filesystem::path& path) {
  DirectFile file;
  file.path_ = path;
  file.buffered_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.buffered_ < 0) {
    const ErrorCode code = errno == ENOENT || errno == ENOTDIR ? ErrorCode::not_found : ErrorCode::io;
    return fail(code, fmt::format("{}: cannot open: {}", path.string(), std::strerror(errno)));
  }
  file.direct_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
  return file;
}

DirectFile::DirectFile(DirectFile&& other) noexcept
    : path_(std::move(other.path_)),
      direct_(std::exchange(other.direct_, -1)),
      buffered_(std::exchange(other.buffered_, -1)) {}

DirectFile& DirectFile::operator=(DirectFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(direct_, other.direct_);
  std::swap(buffered_, other.buffered_);
  return *this;
}

DirectFile::~DirectFile() {
  if (direct_ >= 0) ::close(direct_);
  if (buffered_ >= 0) ::close(buffered_);
}

Status DirectFile::read(std::uint64_t offset, std::uint64_t size, std::byte* memory) const {
  HADAL_CHECK(reinterpret_cast<std::uintptr_t>(memory) % kBlock == 0);
  const std::uint64_t begin = offset / kBlock * kBlock, needed = offset + size - begin;
  const std::uint64_t wanted = footprint(offset, size);
  std::uint64_t done = 0;  // the last block of a file may be a part of one
  while (done < needed) {
    // A read that stopped inside a block (at the end of the file, or of a signal) goes on without O_DIRECT.
    const bool direct = direct_ >= 0 && done % kBlock == 0;
    ssize_t got =
        ::pread(direct ? direct_ : buffered_, memory + done, wanted - done, static_cast<off_t>(begin + done));
    if (got < 0 && direct && errno == EINVAL) {  // opened, but not for blocks of this size
      got = ::pread(buffered_, memory + done, wanted - done, static_cast<off_t>(begin + done));
    }
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return fail(ErrorCode::io, fmt::format("{}: cannot read {} bytes at {}: {}", path_.string(), size,
                                             offset, std::strerror(errno)));
    }
    if (got == 0) {
      return fail(ErrorCode::io,
                  fmt::format("{}: the file ends at byte {}, inside {} bytes wanted at {}; it was truncated "
                              "since it was opened",
                              path_.string(), begin + done, size, offset));
    }
    done += static_cast<std::uint64_t>(got);
  }
  if (direct_ < 0) {
    // Advice that may be ignored.
    (void)::posix_fadvise(buffered_, static_cast<off_t>(begin), static_cast<off_t>(wanted),
                          POSIX_FADV_DONTNEED);
  }
  return {};
}

}  // namespace hadal
