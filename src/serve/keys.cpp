#include "serve/keys.h"

#include <random>

#include <fmt/format.h>

#include "base/directory.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"

namespace hadal::serve {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::optional<Sha256> from_hex(std::string_view hex) {
  Sha256 digest;
  if (hex.size() != 2 * digest.size()) return std::nullopt;
  for (std::size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0) return std::nullopt;
    digest[i / 2] = static_cast<std::uint8_t>(i % 2 == 0 ? value << 4 : digest[i / 2] | value);
  }
  return digest;
}

}  // namespace

Result<ApiKeys> ApiKeys::parse(std::string_view text) {
  ApiKeys keys;
  for (int line = 1; !text.empty(); ++line) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view key = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (key.empty() || key.front() == '#') continue;
    constexpr std::string_view kDigest = "sha256:";
    if (!key.starts_with(kDigest)) {
      keys.digests_.push_back(sha256(key));
    } else if (const auto digest = from_hex(key.substr(kDigest.size()))) {
      keys.digests_.push_back(*digest);
    } else {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("line {}: sha256: needs 64 hexadecimal digits", line));
    }
  }
  if (keys.empty()) return fail(ErrorCode::invalid_argument, "there is no key in it");
  return keys;
}

Result<ApiKeys> ApiKeys::load(const std::filesystem::path& path) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(path, std::size_t{16} << 20));
  std::error_code error;
  const auto mode = std::filesystem::status(path, error).permissions();
  using std::filesystem::perms;
  if ((mode & (perms::others_read | perms::others_write)) != perms::none) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: everybody can read the keys in it; chmod 600 it", path.string()));
  }
  auto keys = parse(text);
  if (!keys) return tl::unexpected(std::move(keys).error().with_context(path.string()));
  return keys;
}

std::optional<std::string> ApiKeys::identify(const HttpRequest& request) const {
  if (empty()) return "anonymous";
  std::string_view given = request.header("authorization");
  if (given.size() > 7 && (given.starts_with("Bearer ") || given.starts_with("bearer "))) {
    given.remove_prefix(7);
  } else {
    given = request.header("x-api-key");
    if (given.empty()) given = request.header("api-key");
  }
  const Sha256 digest = sha256(trimmed(given));
  bool known = false;
  for (const Sha256& key : digests_) known = equal_in_constant_time(key, digest) || known;
  if (!known) return std::nullopt;
  return to_hex(digest).substr(0, 12);
}

Result<std::string> namespace_salt(const std::filesystem::path& directory) {
  const auto fresh = [] {
    std::random_device device;
    std::string salt;
    for (int i = 0; i < 8; ++i) salt += fmt::format("{:08x}", device());
    return salt;
  };
  if (directory.empty()) return fresh();
  HADAL_RETURN_IF_ERROR(make_private_directory(directory));
  const std::filesystem::path path = directory / "salt";
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    HADAL_ASSIGN_OR_RETURN(std::string salt, read_file(path, 4096));
    const bool hex = salt.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (salt.size() == 64 && hex) return salt;
    return fail(
        ErrorCode::corrupt,
        fmt::format(
            "{}: not 64 hexadecimal digits; without the salt that was there nothing in {} is ever found "
            "again: put it back, or remove the directory",
            path.string(), directory.string()));
  }
  if (error) return fail(ErrorCode::io, fmt::format("{}: {}", path.string(), error.message()));
  const std::string salt = fresh();
  HADAL_RETURN_IF_ERROR(write_file(path, salt, FileMode::owner));
  return salt;
}

std::string cache_namespace(std::string_view salt, std::string_view key_id, std::string_view user) {
  const Sha256 digest = hmac_sha256(salt, fmt::format("{}:{}:{}", key_id.size(), key_id, user));
  return {digest.begin(), digest.end()};
}

}  // namespace hadal::serve
