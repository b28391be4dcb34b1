// A file written as a stream under a temporary name and renamed into place when complete: a reader never
// sees half a file, and a full disk leaves nothing behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include <hadal/error.h>

namespace hadal {

// Who may read a new file: what the umask leaves of everybody, or its owner alone.
enum class FileMode : unsigned { shared = 0644, owner = 0600 };

class FileWriter {
 public:
  static Result<FileWriter> create(const std::filesystem::path& path, FileMode mode = FileMode::shared);

  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&&) = delete;
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  ~FileWriter();  // without commit() the temporary file is removed

  Status write(std::span<const std::byte> bytes);
  Status write(std::string_view text) { return write(std::as_bytes(std::span(text.data(), text.size()))); }
  // Bytes that have been written, again.
  Status overwrite(std::uint64_t offset, std::string_view text);
  Status commit();  // flush to the device, rename

  std::uint64_t bytes_written() const { return written_; }

 private:
  FileWriter(std::filesystem::path path, std::filesystem::path temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

  Status write_behind();

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  std::uint64_t written_ = 0;
  std::uint64_t started_ = 0;  // bytes whose way to the device has begun
};

// The whole of `text` as the file `path`, atomically.
Status write_file(const std::filesystem::path& path, std::string_view text, FileMode mode = FileMode::shared);

}  // namespace hadal
