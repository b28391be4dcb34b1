// Reads of a file that leave the page cache alone: O_DIRECT where the filesystem has it, else ordinary reads
// whose pages are given back at once. For data that is cached by somebody who knows better what to keep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

#include <hadal/error.h>

namespace hadal {

class DirectFile {
 public:
  // What O_DIRECT wants offsets, sizes and addresses to be multiples of. 4096 is a multiple of every logical
  // block size that disks have.
  static constexpr std::uint64_t kBlock = 4096;

  static Result<DirectFile> open(const std::filesystem::path& path);
  DirectFile(DirectFile&& other) noexcept;
  DirectFile& operator=(DirectFile&& other) noexcept;
  ~DirectFile();

  // Bytes of the whole blocks around [offset, offset + size).
  static std::uint64_t footprint(std::uint64_t offset, std::uint64_t size) {
    return (offset + size + kBlock - 1) / kBlock * kBlock - offset / kBlock * kBlock;
  }
  // Reads these blocks to `memory`, which is aligned to kBlock and holds footprint() bytes; byte i of the
  // range is then at memory[offset % kBlock + i]. Thread-safe. Errors: io, also when the file ends inside the
  // range.
  Status read(std::uint64_t offset, std::uint64_t size, std::byte* memory) const;

  const std::filesystem::path& path() const { return path_; }
  bool direct() const { return direct_ >= 0; }

 private:
  DirectFile() = default;

  std::filesystem::path path_;
  int direct_ = -1;  // opened with O_DIRECT; -1 where that is refused
  int buffered_ = -1;
};

}  // namespace hadal
