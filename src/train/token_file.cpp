#include "train/token_file.h"

#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/format.h>
#include <xxhash.h>

#include "base/file_writer.h"

namespace hadal {
namespace {

constexpr std::array<char, 8> kTokenFileMagic = {'H', 'A', 'D', 'A', 'L', 'T', 'O', 'K'};
constexpr std::uint32_t kTokenFileVersion = 1;
constexpr std::uint32_t kMasked = 1;

// Little-endian, as every machine that hadal runs on.
struct TokenFileHeader {
  std::array<char, 8> magic = kTokenFileMagic;
  std::uint32_t version = kTokenFileVersion;
  std::uint32_t token_bytes = 4;  // 2 or 4
  std::uint32_t flags = 0;
  std::uint32_t vocab_size = 0;
  std::uint64_t n_tokens = 0;
  std::uint64_t tokenizer_hash = 0;
  std::uint64_t payload_hash = 0;  // XXH3 of all bytes behind the header
  std::array<std::uint8_t, 16> reserved{};
};
static_assert(sizeof(TokenFileHeader) == 64);

std::size_t round_up8(std::size_t n) {
  return (n + 7) / 8 * 8;
}

}  // namespace

Status write_token_file(const std::filesystem::path& path, const TokenFileInfo& info,
                        std::span<const std::int32_t> tokens, std::span<const std::uint8_t> counts) {
  TokenFileHeader header;
  header.token_bytes = info.vocab_size <= 65536 ? 2 : 4;
  header.flags = counts.empty() ? 0 : kMasked;
  header.vocab_size = static_cast<std::uint32_t>(info.vocab_size);
  header.n_tokens = tokens.size();
  header.tokenizer_hash = info.tokenizer_hash;
  const std::size_t token_bytes = round_up8(tokens.size() * header.token_bytes);
  std::vector<std::byte> payload(token_bytes + (counts.empty() ? 0 : round_up8((tokens.size() + 7) / 8)));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    std::memcpy(payload.data() + i * header.token_bytes, &tokens[i], header.token_bytes);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] != 0) payload[token_bytes + i / 8] |= std::byte{1} << (i % 8);
  }
  header.payload_hash = XXH3_64bits(payload.data(), payload.size());
  HADAL_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::create(path));
  HADAL_RETURN_IF_ERROR(writer.write(std::as_bytes(std::span(&header, 1))));
  HADAL_RETURN_IF_ERROR(writer.write(payload));
  return writer.commit();
}

Result<TokenFile> TokenFile::open(const std::filesystem::path& path) {
  TokenFile result;
  HADAL_ASSIGN_OR_RETURN(result.file_, MappedFile::open(path));
  const auto bytes = result.file_.bytes();
  const auto corrupt = [&](const std::string& what) {
    return fail(ErrorCode::corrupt,
                fmt::format("{}: {}; build it again with hadal data build", path.string(), what));
  };
  TokenFileHeader header;
  if (bytes.size() < sizeof(header)) return corrupt("too short for a shard of tokens");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kTokenFileMagic) return corrupt("not a shard of tokens");
  if (header.version != kTokenFileVersion) {
    return fail(ErrorCode::unsupported, fmt::format("{}: version {} of the format, this hadal reads {}",
                                                    path.string(), header.version, kTokenFileVersion));
  }
  if ((header.token_bytes != 2 && header.token_bytes != 4) || header.n_tokens > bytes.size() ||
      (header.flags & ~kMasked) != 0)
    return corrupt("its header makes no sense");
  const bool masked = (header.flags & kMasked) != 0;
  const std::size_t token_bytes = round_up8(header.n_tokens * header.token_bytes);
  const std::size_t wanted =
      sizeof(header) + token_bytes + (masked ? round_up8((header.n_tokens + 7) / 8) : 0);
  if (bytes.size() != wanted)
    return corrupt(fmt::format("{} bytes long, its header says {}", bytes.size(), wanted));
  const auto payload = bytes.subspan(sizeof(header));
  if (XXH3_64bits(payload.data(), payload.size()) != header.payload_hash)
    return corrupt("its checksum does not match");
  result.info_ = {header.vocab_size, header.tokenizer_hash};
  result.size_ = static_cast<std::int64_t>(header.n_tokens);
  result.token_bytes_ = static_cast<int>(header.token_bytes);
  result.tokens_ = payload.data();
  if (masked) result.counts_ = payload.data() + token_bytes;
  std::array<std::int32_t, 4096> chunk;
  for (std::int64_t i = 0; i < result.size_; i += static_cast<std::int64_t>(chunk.size())) {
    const auto part = std::span(chunk).first(static_cast<std::size_t>(
        std::min<std::int64_t>(result.size_ - i, static_cast<std::int64_t>(chunk.size()))));
    result.read(i, part);
    for (const std::int32_t token : part) {
      if (token < 0 || token >= result.info_.vocab_size)
        return corrupt(
            fmt::format("the token {} is not below its vocabulary of {}", token, result.info_.vocab_size));
    }
  }
  return result;
}

void TokenFile::read(std::int64_t begin, std::span<std::int32_t> out) const {
  const std::byte* from = tokens_ + begin * token_bytes_;
  if (token_bytes_ == 4) {
    std::memcpy(out.data(), from, out.size() * 4);
    return;
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t token;
    std::memcpy(&token, from + 2 * i, 2);
    out[i] = token;
  }
}

void TokenFile::read_counts(std::int64_t begin, std::span<std::uint8_t> out) const {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto at = begin + static_cast<std::int64_t>(i);
    out[i] = counts_ == nullptr ? 1 : std::to_integer<std::uint8_t>(counts_[at / 8] >> (at % 8)) & 1;
  }
}

}  // namespace hadal
