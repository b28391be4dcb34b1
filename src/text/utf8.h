// UTF-8 as Unicode's table 3-7 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace hadal {

// What stands at the beginning of some bytes.
struct Utf8Lead {
  enum class Kind {
    character,   // a whole character of `length` bytes
    incomplete,  // the end came within a character: `length` bytes (1 to 3) that more bytes could complete
    invalid,     // a maximal subpart of `length` bytes that no more bytes can make a character
  };
  Kind kind;
  std::size_t length;
};

// `bytes` must not be empty.
Utf8Lead utf8_lead(std::string_view bytes);

bool is_valid_utf8(std::string_view bytes);

// The length of the longest valid prefix, in bytes.
std::size_t valid_utf8_prefix(std::string_view bytes);

// Moves text from the front of `pending` to the end of `out`, each invalid subpart as U+FFFD, up to a last
// character that is still incomplete; with `at_end` that too becomes U+FFFD and `pending` is left empty.
void take_utf8(std::string& pending, bool at_end, std::string& out);

// `bytes` with every invalid subpart replaced by U+FFFD.
std::string to_valid_utf8(std::string_view bytes);

}  // namespace hadal
