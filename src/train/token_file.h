// A shard of training tokens on disk, mapped when read (docs/training_files.md has the bytes): documents put
// one behind the other, each with its BOS and EOS, and optionally one bit per token that says whether
// predicting it counts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include <hadal/error.h>

#include "base/mapped_file.h"

namespace hadal {

struct TokenFileInfo {
  std::int64_t vocab_size = 0;       // every token is below it
  std::uint64_t tokenizer_hash = 0;  // XXH3 of the tokenizer.json that made the tokens
  bool operator==(const TokenFileInfo&) const = default;
};

// Writes a shard as a whole, atomically. `counts`: empty (all count) or one byte per token. Errors: io,
// resource_exhausted.
Status write_token_file(const std::filesystem::path& path, const TokenFileInfo& info,
                        std::span<const std::int32_t> tokens, std::span<const std::uint8_t> counts);

class TokenFile {
 public:
  // Checks everything, the checksum over all bytes and the range of every token too. Errors: not_found, io,
  // corrupt, unsupported (another version).
  static Result<TokenFile> open(const std::filesystem::path& path);

  const TokenFileInfo& info() const { return info_; }
  std::int64_t size() const { return size_; }  // tokens
  bool masked() const { return counts_ != nullptr; }

  // Tokens [begin, begin + out.size()), and whether they count.
  void read(std::int64_t begin, std::span<std::int32_t> out) const;
  void read_counts(std::int64_t begin, std::span<std::uint8_t> out) const;

 private:
  MappedFile file_;
  TokenFileInfo info_;
  std::int64_t size_ = 0;
  int token_bytes_ = 4;
  const std::byte* tokens_ = nullptr;
  const std::byte* counts_ = nullptr;  // bit i % 8 of byte i / 8; null: all count
};

}  // namespace hadal
