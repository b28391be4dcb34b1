// SHA-256 (FIPS 180-4) and HMAC (RFC 2104), for what must not be guessed or turned back: API keys at rest and
// the names under which their caches lie. Checksums of large data are xxh3's.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace hadal {

using Sha256 = std::array<std::uint8_t, 32>;

Sha256 sha256(std::string_view bytes);
Sha256 hmac_sha256(std::string_view key, std::string_view bytes);
std::string to_hex(const Sha256& digest);

// Whether two digests are equal, in a time that does not depend on where they differ.
bool equal_in_constant_time(const Sha256& a, const Sha256& b);

}  // namespace hadal
