// One snapshot of the prefix cache as a file: what docs/cache_format.md describes byte by byte.
//
// A file holds what its parent does not: the tokens behind the parent's, the pages from the first one that
// was not complete there, and the fixed part. Every part has its checksum, the pages one each, so that a
// reader checks exactly what it reads. All lengths in a file are checked against the layout and the size of
// the file before anything is read by them: files are outside bytes.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "base/mapped_file.h"
#include "model/sequence_state.h"

namespace hadal {

// The first kCacheHeaderBytes of a file, little-endian, as it lies there.
struct CacheFileHeader {
  std::array<char, 8> magic = {'H', 'A', 'D', 'A', 'L', 'P', 'F', 'X'};
  std::uint64_t version = 1;
  std::uint64_t model = 0;         // fingerprint of weights and numerics
  std::uint64_t layout = 0;        // StateLayout::fingerprint
  std::uint64_t id = 0;            // also the file's name
  std::uint64_t parent = 0;        // 0: none
  std::int64_t parent_length = 0;  // tokens
  std::int64_t length = 0;         // tokens, the parent's among them
  std::int64_t fixed_bytes = 0;    // 0: window rows are not kept
  std::int64_t first_page = 0;     // floor(parent_length / 128)
  std::int64_t pages = 0;          // in this file
  std::int64_t page_bytes = 0;
  std::array<std::uint8_t, 32> name_space{};
  std::uint64_t tokens_hash = 0;  // xxh3 of the tokens
  std::uint64_t fixed_hash = 0;   // of the fixed part
  std::uint64_t pages_hash = 0;   // of the table of page hashes
  std::uint64_t header_hash = 0;  // of everything above
};
static_assert(sizeof(CacheFileHeader) == 160);

// "0123456789abcdef.prefix" of an id, and back: 0 for any other name.
std::string cache_file_name(std::uint64_t id);
std::uint64_t id_of_cache_file(std::string_view name);

// Whole, flushed and under its name when this returns. `header` says what it is; lengths and hashes are
// filled in from the state, which has read header.length tokens. Returns the bytes of the file.
Result<std::int64_t> write_cache_file(const std::filesystem::path& path, CacheFileHeader& header,
                                      std::span<const std::int32_t> tokens, const SequenceState& state,
                                      bool with_fixed_part);

// A file whose header, tokens and sizes are right; pages and fixed part are checked when they are read.
class CacheFile {
 public:
  // Errors: io, corrupt.
  static Result<CacheFile> open(const std::filesystem::path& path);

  const CacheFileHeader& header() const { return header_; }
  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(file_.bytes().size()); }

  // Copies the pages [from, to) of the sequence into `state`, which has them. Errors: corrupt.
  Status read_pages(std::int64_t from, std::int64_t to, SequenceState& state) const;
  Status read_fixed_part(SequenceState& state) const;
  Status verify() const;  // everything

 private:
  std::span<const std::byte> page(std::int64_t i) const;
  Status check_page(std::int64_t i) const;

  MappedFile file_;
  CacheFileHeader header_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint64_t> page_hashes_;
  std::size_t fixed_at_ = 0, pages_at_ = 0;
};

}  // namespace hadal
