#include "engine/cache_file.h"

#include <cstddef>
#include <cstring>

#include <fmt/format.h>
#include <xxhash.h>

#include "base/check.h"
#include "base/file_writer.h"

namespace hadal {
namespace {

constexpr std::size_t kAlign = 64;
constexpr std::string_view kSuffix = ".prefix";
constexpr std::int64_t kMostTokens = std::int64_t{1} << 32;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Where the parts of a file begin, from its header.
struct Places {
  explicit Places(const CacheFileHeader& h)
      : tokens(aligned(sizeof(CacheFileHeader))),
        hashes(aligned(tokens + sizeof(std::int32_t) * static_cast<std::size_t>(h.length - h.parent_length))),
        fixed(aligned(hashes + sizeof(std::uint64_t) * static_cast<std::size_t>(h.pages))),
        pages(aligned(fixed + static_cast<std::size_t>(h.fixed_bytes))),
        end(pages + static_cast<std::size_t>(h.pages) * static_cast<std::size_t>(h.page_bytes)) {}

  std::size_t tokens, hashes, fixed, pages, end;
};

std::uint64_t hash_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t header_hash(const CacheFileHeader& header) {
  return XXH3_64bits(&header, offsetof(CacheFileHeader, header_hash));
}

}  // namespace

std::string cache_file_name(std::uint64_t id) {
  return fmt::format("{:016x}{}", id, kSuffix);
}

std::uint64_t id_of_cache_file(std::string_view name) {
  if (name.size() != 16 + kSuffix.size() || !name.ends_with(kSuffix)) return 0;
  std::uint64_t id = 0;
  for (const char c : name.substr(0, 16)) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && !(c >= 'a' && c <= 'f')) return 0;
    id = id * 16 + static_cast<std::uint64_t>(digit ? c - '0' : c - 'a' + 10);
  }
  return id;
}

Result<std::int64_t> write_cache_file(const std::filesystem::path& path, CacheFileHeader& header,
                                      std::span<const std::int32_t> tokens, const SequenceState& state,
                                      bool with_fixed_part) {
  header.length = state.length();
  HADAL_CHECK(header.length - header.parent_length == static_cast<std::int64_t>(tokens.size()));
  header.layout = state.layout().fingerprint;
  header.page_bytes = state.layout().page_bytes;
  header.fixed_bytes = with_fixed_part ? state.layout().fixed_bytes : 0;
  header.first_page = header.parent_length / kPageTokens;
  header.pages =
      static_cast<std::int64_t>(state.page_count()) - (header.page_bytes == 0 ? 0 : header.first_page);
  std::vector<std::uint64_t> hashes;
  for (auto i = static_cast<std::size_t>(header.first_page); i < state.page_count(); ++i)
    hashes.push_back(hash_of(state.page(i)));
  header.tokens_hash = hash_of(std::as_bytes(tokens));
  header.fixed_hash = with_fixed_part ? hash_of(state.fixed_part()) : 0;
  header.pages_hash = hash_of(std::as_bytes(std::span(hashes)));
  header.header_hash = header_hash(header);

  HADAL_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::create(path, FileMode::owner));
  std::size_t at = 0;
  const auto put = [&](std::span<const std::byte> bytes) -> Status {
    at += bytes.size();
    return writer.write(bytes);
  };
  const auto pad_to = [&](std::size_t place) -> Status {
    static constexpr std::array<std::byte, kAlign> kZeros{};
    return put(std::span(kZeros).first(place - at));
  };
  const Places places(header);
  HADAL_RETURN_IF_ERROR(put(std::as_bytes(std::span(&header, 1))));
  HADAL_RETURN_IF_ERROR(pad_to(places.tokens));
  HADAL_RETURN_IF_ERROR(put(std::as_bytes(tokens)));
  HADAL_RETURN_IF_ERROR(pad_to(places.hashes));
  HADAL_RETURN_IF_ERROR(put(std::as_bytes(std::span(hashes))));
  HADAL_RETURN_IF_ERROR(pad_to(places.fixed));
  if (with_fixed_part) HADAL_RETURN_IF_ERROR(put(state.fixed_part()));
  HADAL_RETURN_IF_ERROR(pad_to(places.pages));
  for (auto i = static_cast<std::size_t>(header.first_page); i < state.page_count(); ++i)
    HADAL_RETURN_IF_ERROR(put(state.page(i)));
  HADAL_RETURN_IF_ERROR(writer.commit());
  return static_cast<std::int64_t>(at);
}

Result<CacheFile> CacheFile::open(const std::filesystem::path& path) {
  CacheFile result;
  HADAL_ASSIGN_OR_RETURN(result.file_, MappedFile::open(path, /*follow_symlinks=*/false));
  const auto bytes = result.file_.bytes();
  const auto bad = [&](const char* what) {
    return fail(ErrorCode::corrupt, fmt::format("{}: {}", path.string(), what));
  };
  CacheFileHeader& h = result.header_;
  const CacheFileHeader expected;
  if (bytes.size() < sizeof(h)) return bad("too short for a cached prefix");
  std::memcpy(&h, bytes.data(), sizeof(h));
  if (h.magic != expected.magic || h.version != expected.version)
    return bad("not a cached prefix of this version");
  if (h.header_hash != header_hash(h)) return bad("the checksum of the header does not match");
  // Bounds that keep every sum below from overflowing.
  constexpr std::int64_t kMostBytes = std::int64_t{1} << 31;
  if (h.parent_length < 0 || h.length <= h.parent_length || h.length > kMostTokens || h.fixed_bytes < 0 ||
      h.fixed_bytes > kMostBytes || h.page_bytes < 0 || h.page_bytes > kMostBytes ||
      (h.parent == 0) != (h.parent_length == 0) || h.id == 0) {
    return bad("contradictory lengths");
  }
  const std::int64_t all_pages = h.page_bytes == 0 ? 0 : (h.length + kPageTokens - 1) / kPageTokens;
  const std::int64_t first_page = h.parent_length / kPageTokens;
  if (h.first_page != first_page || h.pages != (h.page_bytes == 0 ? 0 : all_pages - first_page))
    return bad("contradictory pages");
  const Places places(h);
  if (bytes.size() != places.end) return bad("truncated or too long");
  const auto n_tokens = static_cast<std::size_t>(h.length - h.parent_length);
  const auto token_bytes = bytes.subspan(places.tokens, n_tokens * sizeof(std::int32_t));
  const auto table = bytes.subspan(places.hashes, static_cast<std::size_t>(h.pages) * sizeof(std::uint64_t));
  if (hash_of(token_bytes) != h.tokens_hash) return bad("the checksum of the tokens does not match");
  if (hash_of(table) != h.pages_hash) return bad("the checksum of the table of pages does not match");
  result.tokens_.resize(n_tokens);
  std::memcpy(result.tokens_.data(), token_bytes.data(), token_bytes.size());
  result.page_hashes_.resize(static_cast<std::size_t>(h.pages));
  if (!table.empty()) std::memcpy(result.page_hashes_.data(), table.data(), table.size());
  result.fixed_at_ = places.fixed;
  result.pages_at_ = places.pages;
  return result;
}

std::span<const std::byte> CacheFile::page(std::int64_t i) const {
  const auto bytes = static_cast<std::size_t>(header_.page_bytes);
  return file_.bytes().subspan(pages_at_ + static_cast<std::size_t>(i - header_.first_page) * bytes, bytes);
}

Status CacheFile::check_page(std::int64_t i) const {
  if (hash_of(page(i)) == page_hashes_[static_cast<std::size_t>(i - header_.first_page)]) return {};
  return fail(ErrorCode::corrupt, fmt::format("the checksum of page {} does not match", i));
}

Status CacheFile::read_pages(std::int64_t from, std::int64_t to, SequenceState& state) const {
  HADAL_CHECK(from >= header_.first_page && to <= header_.first_page + header_.pages);
  for (std::int64_t i = from; i < to; ++i) {
    HADAL_RETURN_IF_ERROR(check_page(i));
    const std::span<std::byte> into = state.page(static_cast<std::size_t>(i));
    std::memcpy(into.data(), page(i).data(), into.size());
  }
  return {};
}

Status CacheFile::read_fixed_part(SequenceState& state) const {
  const auto bytes = file_.bytes().subspan(fixed_at_, static_cast<std::size_t>(header_.fixed_bytes));
  HADAL_CHECK(bytes.size() == state.fixed_part().size());
  if (hash_of(bytes) != header_.fixed_hash)
    return fail(ErrorCode::corrupt, "the checksum of the fixed part does not match");
  if (!bytes.empty()) std::memcpy(state.fixed_part().data(), bytes.data(), bytes.size());
  return {};
}

Status CacheFile::verify() const {
  for (std::int64_t i = header_.first_page; i < header_.first_page + header_.pages; ++i)
    HADAL_RETURN_IF_ERROR(check_page(i));
  const auto fixed = file_.bytes().subspan(fixed_at_, static_cast<std::size_t>(header_.fixed_bytes));
  if (header_.fixed_bytes > 0 && hash_of(fixed) != header_.fixed_hash)
    return fail(ErrorCode::corrupt, "the checksum of the fixed part does not match");
  return {};
}

}  // namespace hadal
