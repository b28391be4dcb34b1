// Who may ask: API keys from a file, kept as digests and compared in constant time; and the names under which
// what somebody has read is kept apart from everybody else's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "base/sha256.h"
#include "serve/http_server.h"

namespace hadal::serve {

class ApiKeys {
 public:
  // One key per line, as it is or as `sha256:` and 64 hexadecimal digits; blank lines and those that begin
  // with # are nothing. Errors: io, invalid_argument (a file that others may read, no key in it, a digest of
  // another length), naming the line.
  static Result<ApiKeys> load(const std::filesystem::path& path);
  static Result<ApiKeys> parse(std::string_view text);

  bool empty() const { return digests_.empty(); }
  // The id of the key that the request has (Authorization: Bearer, x-api-key, api-key), 12 digits of its
  // digest; "anonymous" if there are no keys at all; nothing if the key is missing or wrong. Looks at every
  // key whatever it finds.
  std::optional<std::string> identify(const HttpRequest& request) const;

 private:
  std::vector<Sha256> digests_;
};

// The salt of this server's namespaces: from `directory` (made there if need be, and closed to others), or a
// fresh one without. Errors: io; corrupt: the file there is no salt.
Result<std::string> namespace_salt(const std::filesystem::path& directory);
// Of a key and the user that it asks for: 32 bytes from which neither can be told.
std::string cache_namespace(std::string_view salt, std::string_view key_id, std::string_view user);

}  // namespace hadal::serve
