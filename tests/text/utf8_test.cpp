#include "text/utf8.h"

#include <random>
#include <string>

#include <gtest/gtest.h>

#include "text/byte_alphabet.h"

namespace hadal {
namespace {

std::string encode(std::uint32_t c) {
  std::string out;
  const auto push = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    push(c);
    return out;
  }
  const int n_more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  push((n_more == 1 ? 0xC0u : n_more == 2 ? 0xE0u : 0xF0u) | c >> 6 * n_more);
  for (int i = n_more - 1; i >= 0; --i) push(0x80 | (c >> 6 * i & 0x3F));
  return out;
}

TEST(Utf8, EveryCodePointIsACharacterButSurrogates) {
  for (std::uint32_t c = 0; c < 0x110000; ++c) {
    const std::string bytes = encode(c);
    const Utf8Lead lead = utf8_lead(bytes);
    const bool surrogate = c >= 0xD800 && c < 0xE000;
    ASSERT_EQ(lead.kind == Utf8Lead::Kind::character, !surrogate) << c;
    ASSERT_EQ(is_valid_utf8(bytes), !surrogate) << c;
    if (surrogate) continue;
    ASSERT_EQ(lead.length, bytes.size()) << c;
    for (std::size_t n = 1; n < bytes.size(); ++n) {
      const Utf8Lead part = utf8_lead(bytes.substr(0, n));
      ASSERT_EQ(part.kind, Utf8Lead::Kind::incomplete) << c;
      ASSERT_EQ(part.length, n) << c;
    }
  }
}

// Expected values are those of Python's bytes.decode(errors="replace").
TEST(Utf8, ReplacesMaximalSubparts) {
  EXPECT_EQ(to_valid_utf8(""), "");
  EXPECT_EQ(to_valid_utf8("a\xFFz"), "a\uFFFDz");
  EXPECT_EQ(to_valid_utf8("\xC0\x80"), "\uFFFD\uFFFD");                      // overlong
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");            // surrogate
  EXPECT_EQ(to_valid_utf8("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");  // above U+10FFFF
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x98"), "\uFFFD");                        // cut at the end
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x98z"), "\uFFFDz");                      // cut in the middle
  EXPECT_EQ(to_valid_utf8("\xE4\xBD\xE4\xBD\xA0"), "\uFFFD\u4F60");
  EXPECT_EQ(to_valid_utf8("\x80\xBF"), "\uFFFD\uFFFD");
}

TEST(Utf8, PrefixStopsAtTheFirstBadByteAtEveryOffset) {
  std::string text;
  while (text.size() < 10'000) text += "aé你😀";
  EXPECT_EQ(valid_utf8_prefix(text), text.size());
  for (std::size_t at = 0; at < text.size(); at += 7) {
    std::string broken = text;
    broken[at] = '\xFF';
    std::size_t expected = at;  // the beginning of the character that byte was in
    while ((static_cast<unsigned char>(text[expected]) & 0xC0) == 0x80) --expected;
    ASSERT_EQ(valid_utf8_prefix(broken), expected) << at;
    ASSERT_FALSE(is_valid_utf8(broken)) << at;
  }
  for (std::size_t cut = 0; cut < 300; ++cut) {
    const std::string_view part = std::string_view(text).substr(0, text.size() - cut);
    ASSERT_EQ(valid_utf8_prefix(part) == part.size(), is_valid_utf8(part)) << cut;
  }
}

TEST(Utf8, StreamedInAnyCutsGivesTheSameText) {
  std::mt19937 rng(1);
  const std::vector<std::string> parts = {"a",        "é",        "你",   "😀",           "\xFF",
                                          "\xE4\xBD", "\xF0\x9F", "\x80", "\xED\xA0\x80"};
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += parts[rng() % parts.size()];
    std::string pending;
    std::string out;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t n = std::min<std::size_t>(1 + rng() % 3, bytes.size() - at);
      pending += bytes.substr(at, n);
      at += n;
      take_utf8(pending, false, out);
      ASSERT_TRUE(is_valid_utf8(out));
      ASSERT_LE(pending.size(), 3u);
    }
    take_utf8(pending, true, out);
    ASSERT_TRUE(pending.empty());
    ASSERT_EQ(out, to_valid_utf8(bytes));
  }
}

TEST(ByteAlphabet, SpellsEveryByte) {
  std::string all;
  for (int b = 0; b < 256; ++b) all.push_back(static_cast<char>(b));
  EXPECT_EQ(bytes_of_spelling(spelling_of_bytes(all)), all);
  EXPECT_TRUE(is_valid_utf8(spelling_of_bytes(all)));
  EXPECT_EQ(spelling_of_bytes(" \n~\x7F\xAD\xFF"), "ĠĊ~ġŃÿ");
  EXPECT_EQ(bytes_of_spelling("Ġ你"), std::nullopt);
  EXPECT_EQ(bytes_of_spelling(" "), std::nullopt);
  EXPECT_EQ(bytes_of_spelling("\xC4"), std::nullopt);
}

}  // namespace
}  // namespace hadal
