// The pre-tokeniser patterns of tokenizer.json are written for Oniguruma; hadal runs them in PCRE2. The two
// dialects differ in places, so a pattern is read by a small grammar that covers what DeepSeek's patterns
// use, written out anew for PCRE2 with exactly Oniguruma's meaning, and anything else is refused:
//
//   - `\s` is Unicode's White_Space (PCRE2's own `\s` adds U+180E);
//   - `\p{L} \p{M} \p{N} \p{P} \p{S} \p{Z}` are those of Unicode 16, which the `tokenizers` library has,
//     whatever version the installed PCRE2 knows: characters newer than it are added as ranges;
//   - quantifiers stand on single characters and classes only, so backtracking stays polynomial.
#pragma once

#include <string>
#include <string_view>

#include <hadal/error.h>

namespace hadal {

// The PCRE2 pattern (for PCRE2_UTF | PCRE2_UCP) that means what `oniguruma` means. `unicode_version` is the
// major version of Unicode that the PCRE2 at hand knows. Error: unsupported, with the place in the pattern.
Result<std::string> translate_pattern(std::string_view oniguruma, int unicode_version);

}  // namespace hadal
