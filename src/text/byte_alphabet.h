// The alphabet in which byte-level BPE files spell bytes: each of the 256 bytes is one printable character
// (GPT-2's bytes_to_unicode). Printable Latin-1 bytes stand for themselves; the 68 others, in order, are
// U+0100, U+0101, ...: a space is Ġ (U+0120), a newline Ċ (U+010A).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace hadal {

// The bytes that `spelling` (UTF-8) spells; nullopt if a character of it is not of the alphabet.
std::optional<std::string> bytes_of_spelling(std::string_view spelling);

// The spelling of `bytes`, in UTF-8.
std::string spelling_of_bytes(std::string_view bytes);

}  // namespace hadal
