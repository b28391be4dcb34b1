// The tokenizer under random bytes. The first byte says what the rest is: a tokenizer.json, a pre-tokeniser
// pattern with a text, or a text. Whatever is accepted must give back the bytes that it was given.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/tokenizer.h>

#include "../tests/text/tokenizer_fixture.h"
#include "base/check.h"
#include "text/pre_tokenizer.h"
#include "text/utf8.h"

namespace hadal {
namespace {

void round_trip(const Tokenizer& tokenizer, std::string_view text) {
  const auto plain = tokenizer.encode(text);
  if (!plain) return;  // a pattern gave up
  HADAL_CHECK(tokenizer.decode(*plain).value() == text);
  for (const std::int32_t id : *plain) HADAL_CHECK(!tokenizer.is_added(id));

  const auto trusted = tokenizer.encode_with_specials(text);
  if (trusted) HADAL_CHECK(tokenizer.decode(*trusted).value() == text);

  // Cut in three by its own bytes, the middle one control text.
  const std::size_t a = text.empty() ? 0 : static_cast<std::uint8_t>(text.front()) % (text.size() + 1);
  const std::size_t b = text.empty() ? 0 : a + static_cast<std::uint8_t>(text.back()) % (text.size() + 1 - a);
  const std::vector<TextSegment> segments = {
      {text.substr(0, a), false}, {text.substr(a, b - a), true}, {text.substr(b), false}};
  const auto mixed = tokenizer.encode(segments);
  if (mixed) HADAL_CHECK(tokenizer.decode(*mixed).value() == text);

  StreamDecoder decoder(tokenizer);
  std::string streamed;
  for (const std::int32_t id : *plain) {
    const std::string piece = decoder.push(id);
    HADAL_CHECK(is_valid_utf8(piece));
    streamed += piece;
  }
  HADAL_CHECK(streamed + decoder.flush() == to_valid_utf8(text));
}

void split(std::string_view pattern, std::string_view text) {
  if (!is_valid_utf8(text)) return;
  const auto pre_tokenizer = PreTokenizer::create(std::vector<std::string>{std::string(pattern)});
  if (!pre_tokenizer) return;
  PreTokenizer::Scratch scratch(*pre_tokenizer);
  std::string all;
  const Status status = pre_tokenizer->split(text, scratch, [&](std::string_view piece) {
    HADAL_CHECK(!piece.empty());
    all += piece;
  });
  if (status) HADAL_CHECK(all == text);
}

const Tokenizer& small() {
  static const Tokenizer tokenizer =
      Tokenizer::from_json(tokenizer_json({{"t", "h"}, {"th", "e"}, {" ", "the"}, {"\xE4", "\xBD"}},
                                          {{"<think>", true, false},
                                           {"｜DSML｜", true, false},
                                           {"<s>", false, true},
                                           {"｜><s", false, false}})
                               .dump())
          .value();
  return tokenizer;
}

}  // namespace
}  // namespace hadal

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      hadal::round_trip(hadal::small(), rest);
      break;
    case 1: {
      const std::size_t zero = rest.find('\0');
      if (zero != std::string_view::npos) hadal::split(rest.substr(0, zero), rest.substr(zero + 1));
      break;
    }
    default:
      if (const auto tokenizer = hadal::Tokenizer::from_json(rest)) {
        hadal::round_trip(*tokenizer, "the 1234 \xE4\xBD\xA0 \xFF<think> <s>\n\n x");
      }
  }
  return 0;
}
