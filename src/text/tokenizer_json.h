// Reads tokenizer.json (the format of the `tokenizers` library) as far as DeepSeek's tokenizers use it:
// a byte-level BPE, Split pre-tokenisers, added tokens. Whatever would change the ids and is not done here is
// refused by the name of its field.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "text/added_tokens.h"
#include "text/bpe.h"

namespace hadal {

struct TokenizerDescription {
  std::vector<std::string> token_bytes;      // by id: what each token stands for
  std::array<std::int32_t, 256> byte_ids{};  // the id of each single byte
  Merges merges;                             // none of which gives an added token
  std::vector<AddedToken> added_tokens;      // contents and ids all different; no id is a byte's or a merge's
  std::vector<std::string> split_patterns;   // in Oniguruma's dialect, to be applied in this order
};

// Errors: corrupt, unsupported; the message begins with the field.
Result<TokenizerDescription> parse_tokenizer_json(std::string_view json);

}  // namespace hadal
