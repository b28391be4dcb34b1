// Text to token ids and back: the byte-level BPE of tokenizer.json, equal to the `tokenizers` library on
// valid UTF-8 and lossless on everything else (docs/tokenizer.md).
//
// Two kinds of text go in. Plain text (what users, files and tools say) never becomes an added token:
// `<｜User｜>` typed by a user is ordinary characters. Control text (what the chat encoder writes) is where
// added tokens (`<｜User｜>`, `<think>`, `｜DSML｜`, ...) are recognised, whatever their "special" flag says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

namespace hadal {

// A stretch of a prompt. With `control` set, added tokens inside it become their ids.
struct TextSegment {
  std::string_view text;
  bool control = false;
};

// Immutable and cheap to copy (copies share the tables); any number of threads may use one at once.
class Tokenizer {
 public:
  // From the bytes of a tokenizer.json. Errors: corrupt (not JSON, ids out of range, merges of unknown
  // tokens, ...), unsupported (a field whose value hadal does not do); both name the field.
  static Result<Tokenizer> from_json(std::string_view json);

  // From a file, or from tokenizer.json in a directory. Errors: as above, and not_found, io.
  static Result<Tokenizer> load(const std::filesystem::path& path);

  // Ids of plain text, any bytes; added tokens are not recognised. Error (of all three): resource_exhausted
  // when a pre-tokeniser pattern gives up on the text, which DeepSeek's patterns do not.
  Result<std::vector<std::int32_t>> encode(std::string_view text) const;

  // Ids of the segments put together. Added tokens are found within stretches of control text only, never
  // across the border to plain text; what lies between two of them is tokenised as one run, whatever
  // segments it comes from. So, where plain text holds no markup, the ids are those of
  // encode_with_specials(all the text).
  Result<std::vector<std::int32_t>> encode(std::span<const TextSegment> segments) const;

  // Added tokens are recognised everywhere, as the `tokenizers` library does. For trusted text only.
  Result<std::vector<std::int32_t>> encode_with_specials(std::string_view text) const;

  // The bytes that `ids` stand for, added tokens as their text. Not always UTF-8: an id may be half a
  // character. Error: invalid_argument for an id outside [0, vocab_size()), with its index.
  Result<std::string> decode(std::span<const std::int32_t> ids) const;

  // The bytes of one id; empty for an id outside [0, vocab_size()). Lives as long as a copy of the tokenizer.
  std::string_view token_bytes(std::int32_t id) const;

  // Number of ids: every id in [0, vocab_size()) is a token. A model may have more rows than that.
  std::int32_t vocab_size() const;

  // The added token with this content, else the ordinary token of these bytes.
  std::optional<std::int32_t> id_of(std::string_view token) const;

  bool is_added(std::int32_t id) const;    // listed in added_tokens: never the outcome of plain text
  bool is_special(std::int32_t id) const;  // an added token with "special": true

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

  std::shared_ptr<const Impl> impl_;
};

// Turns ids that arrive one by one into text that is valid UTF-8 at every moment: bytes that may still
// become a character wait for the next id. Bytes that cannot become one are given as U+FFFD, one per maximal
// subpart (the Unicode recommendation, and what Python and Rust do), so the pieces put together are the
// lossy text of decode(ids), however the ids were cut. Ids outside the vocabulary are ignored.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  std::string push(std::int32_t id);  // the characters that `id` completes, perhaps none
  std::string flush();                // at the end: U+FFFD if a character was left unfinished

 private:
  Tokenizer tokenizer_;
  std::string pending_;  // at most 3 bytes, the valid beginning of a character
};

}  // namespace hadal
