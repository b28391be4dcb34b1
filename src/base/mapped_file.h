// A regular file mapped read-only into memory for the life of the object.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

#include <hadal/error.h>

namespace hadal {

class MappedFile {
 public:
  // Refuses whatever is not a regular file (a FIFO would block for ever). With `follow_symlinks` false a
  // symbolic link as the last component is refused too.
  static Result<MappedFile> open(const std::filesystem::path& path, bool follow_symlinks = true);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Takes the pages that were touched out of this process's memory; they come back when touched again.
  void release_pages() const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// The whole of a regular file; refuses one of more than `limit` bytes.
Result<std::string> read_file(const std::filesystem::path& path, std::size_t limit = std::size_t{1} << 30);

}  // namespace hadal
