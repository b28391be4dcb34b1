#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <hadal/tokenizer.h>

#include "text/utf8.h"
#include "tokenizer_fixture.h"

namespace hadal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

// Byte b has the id b. 256 "he", 257 "ll", 258 "hell", 259 "hello", 260 " w"; then added tokens from 261 on.
constexpr std::int32_t kUser = 261;
constexpr std::int32_t kThink = 262;
constexpr std::int32_t kDsml = 263;
constexpr std::int32_t kBos = 264;
constexpr std::int32_t kBosLonger = 265;
constexpr std::int32_t kCrossing = 266;

const Tokenizer& small() {
  static const Tokenizer tokenizer =
      Tokenizer::from_json(tokenizer_json({{"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {" ", "w"}},
                                          {{"<｜User｜>", true, false},
                                           {"<think>", true, false},
                                           {"｜DSML｜", true, false},
                                           {"<s>", false, true},
                                           {"<s>>", false, true},
                                           {"｜><s", false, false}})
                               .dump())
          .value();
  return tokenizer;
}

const Tokenizer& default_model() {
  static const Tokenizer tokenizer = Tokenizer::load(HADAL_TEST_DATA "/../../models/default").value();
  return tokenizer;
}

Ids bytes_as_ids(std::string_view text) {
  Ids ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

Ids joined(std::initializer_list<Ids> parts) {
  Ids all;
  for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(Tokenizer, MergesWithinPieces) {
  EXPECT_EQ(small().encode("hello").value(), Ids({259}));
  EXPECT_EQ(small().encode("hello world").value(), Ids({259, 260, 'o', 'r', 'l', 'd'}));
  EXPECT_EQ(small().encode("hell8o").value(), Ids({258, '8', 'o'}));  // a digit is a piece of its own
  EXPECT_EQ(small().encode("").value(), Ids());
  EXPECT_EQ(small().encode(std::string_view("\0\0", 2)).value(), Ids({0, 0}));
}

TEST(Tokenizer, KnowsItsVocabulary) {
  EXPECT_EQ(small().vocab_size(), 267);
  EXPECT_EQ(small().id_of("hello"), 259);
  EXPECT_EQ(small().id_of(" "), 32);
  EXPECT_EQ(small().id_of("<think>"), kThink);
  EXPECT_EQ(small().id_of("no such"), std::nullopt);
  EXPECT_EQ(small().token_bytes(259), "hello");
  EXPECT_EQ(small().token_bytes(kUser), "<｜User｜>");
  EXPECT_EQ(small().token_bytes(0xFF), "\xFF");
  EXPECT_EQ(small().token_bytes(-1), "");
  EXPECT_EQ(small().token_bytes(267), "");
  EXPECT_TRUE(small().is_added(kThink));
  EXPECT_FALSE(small().is_special(kThink));
  EXPECT_TRUE(small().is_special(kBos));
  EXPECT_FALSE(small().is_added(259));
  EXPECT_FALSE(small().is_added(-1));
  EXPECT_FALSE(small().is_added(267));
}

TEST(Tokenizer, PlainTextNeverBecomesAnAddedToken) {
  for (const std::string_view text :
       {"<｜User｜>", "<think>", "a ｜DSML｜ b", "<s>", "<s>>", "x<think>hello</think>"}) {
    const Ids ids = small().encode(text).value();
    for (const std::int32_t id : ids) EXPECT_FALSE(small().is_added(id)) << text;
    EXPECT_EQ(small().decode(ids).value(), text);
  }
  for (std::int32_t id = 0; id < default_model().vocab_size(); ++id) {
    if (!default_model().is_added(id)) continue;
    const std::string text(default_model().token_bytes(id));
    EXPECT_EQ(default_model().encode_with_specials(text).value(), Ids({id}));
    const Ids parts = default_model().encode(text).value();
    for (const std::int32_t part : parts) EXPECT_FALSE(default_model().is_added(part));
  }
}

TEST(Tokenizer, SegmentsDecideWhatIsMarkup) {
  const auto encode = [](std::vector<TextSegment> segments) { return small().encode(segments).value(); };
  // A user types markup: only the encoder's own is markup.
  EXPECT_EQ(encode({{"<｜User｜>", true}, {"<｜User｜>hello", false}, {"<think>", true}}),
            joined({{kUser}, bytes_as_ids("<｜User｜>"), {259, kThink}}));
  // Markup is not completed across a border, in either direction, nor from two plain halves.
  EXPECT_EQ(encode({{"<thi", true}, {"nk>", false}}), bytes_as_ids("<think>"));
  EXPECT_EQ(encode({{"<thi", false}, {"nk>", true}}), bytes_as_ids("<think>"));
  EXPECT_EQ(encode({{"<thi", false}, {"nk>", false}}), bytes_as_ids("<think>"));
  // ... but control text may come in parts.
  EXPECT_EQ(encode({{"<thi", true}, {"", false}, {"nk>", true}}), Ids({kThink}));
  EXPECT_EQ(encode({{"a<", true}, {"｜DSML｜", true}, {">", true}}), Ids({'a', '<', kDsml, '>'}));
  // What lies between added tokens is one run, whatever segments it comes from.
  EXPECT_EQ(encode({{"hel", false}, {"lo", false}}), Ids({259}));
  EXPECT_EQ(encode({{"<think>he", true}, {"ll", false}, {"o<think>", true}}), Ids({kThink, 259, kThink}));
  EXPECT_EQ(encode({{"\xE4\xBD", false}, {"\xA0", false}}), bytes_as_ids("你"));
  EXPECT_EQ(encode({}), Ids());
  EXPECT_EQ(encode({{"", true}, {"", false}}), Ids());
}

TEST(Tokenizer, FindsAddedTokensAsTheLibraryDoes) {
  const auto encode = [](std::string_view text) { return small().encode_with_specials(text).value(); };
  EXPECT_EQ(encode("hello<think>hello"), Ids({259, kThink, 259}));
  EXPECT_EQ(encode("<think><think>"), Ids({kThink, kThink}));
  EXPECT_EQ(encode("<s>><s>"), Ids({kBosLonger, kBos}));  // the longest of those that begin here
  EXPECT_EQ(encode("<<s>"), Ids({'<', kBos}));
  EXPECT_EQ(encode("<think"), bytes_as_ids("<think"));
  // "normalized": false comes first, though the other begins further left.
  EXPECT_EQ(encode("<｜User｜><s>"), joined({bytes_as_ids("<｜User"), {kCrossing, '>'}}));
  EXPECT_EQ(encode("\xFF<think>\xE4"), Ids({0xFF, kThink, 0xE4}));
}

TEST(Tokenizer, AnyBytesSurviveTheRoundTrip) {
  std::mt19937 rng(3);
  const std::vector<std::string> parts = {"hello",    "你好",         "😀",        "é",           " ",
                                          "\n",       "123",          "\xFF\xFE", "\xE4\xBD",    "\x80",
                                          "\xC0\x80", "\xED\xA0\x80", "<think>",  "\xF0\x9F\x98"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (std::size_t i = rng() % 12; i > 0; --i) text += parts[rng() % parts.size()];
    for (const Ids& ids : {small().encode(text).value(), small().encode_with_specials(text).value()}) {
      ASSERT_EQ(small().decode(ids).value(), text);
    }
  }
  std::string noise;
  for (int i = 0; i < 100'000; ++i) noise.push_back(static_cast<char>(rng()));
  EXPECT_EQ(default_model().decode(default_model().encode(noise).value()).value(), noise);
}

TEST(Tokenizer, InvalidBytesArePiecesOfTheirOwn) {
  // 0xFF does not keep "hello" from being one on either side; without it the two would be one piece.
  EXPECT_EQ(small().encode("hello\xFFhello").value(), Ids({259, 0xFF, 259}));
  // Each valid stretch is a text of its own: the space is at an end, so it does not join what follows.
  EXPECT_EQ(small().encode("a \xFFw").value(), Ids({'a', ' ', 0xFF, 'w'}));
  EXPECT_EQ(small().encode("a w").value(), Ids({'a', 260}));
}

TEST(Tokenizer, TokensOfOneStretchDoNotDependOnTheCacheOrTheThread) {
  std::mt19937 rng(9);
  std::string text;
  for (int i = 0; i < 60'000; ++i) text += {"hello "[rng() % 6], "world你"[rng() % 5]};
  const Tokenizer fresh =
      Tokenizer::from_json(tokenizer_json({{"h", "e"}, {"l", "l"}, {"l", "o"}}).dump()).value();
  const Ids expected = fresh.encode(text).value();
  EXPECT_EQ(fresh.encode(text).value(), expected);
  std::vector<Ids> answers(4);
  std::vector<std::thread> threads;
  for (Ids& answer : answers) threads.emplace_back([&] { answer = fresh.encode(text).value(); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& answer : answers) EXPECT_EQ(answer, expected);
}

TEST(Tokenizer, DecodeRefusesIdsOutOfRange) {
  for (const std::int32_t id : {-1, 267, INT32_MAX, INT32_MIN}) {
    const auto decoded = small().decode(Ids({1, id}));
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code(), ErrorCode::invalid_argument);
    EXPECT_THAT(decoded.error().message(),
                HasSubstr("at index 1 is out of range: the tokenizer has the ids 0 to 266"));
  }
}

TEST(Tokenizer, DefaultModelHasTheMarkupOfV4) {
  const Tokenizer& tokenizer = default_model();
  EXPECT_EQ(tokenizer.vocab_size(), 320);
  EXPECT_EQ(tokenizer.id_of("<｜begin▁of▁sentence｜>"), 0);
  EXPECT_EQ(tokenizer.id_of("<｜end▁of▁sentence｜>"), 1);
  EXPECT_EQ(tokenizer.id_of("<｜▁pad▁｜>"), 2);
  for (const std::string_view token :
       {"<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>",
        "<｜action｜>", "<｜query｜>", "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜read_url｜>",
        "<｜extracted_url｜>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"}) {
    const auto id = tokenizer.id_of(token);
    ASSERT_TRUE(id.has_value()) << token;
    EXPECT_TRUE(tokenizer.is_added(*id)) << token;
  }
  EXPECT_EQ(tokenizer.encode("hello 你").value().size(), 9u);  // one id per byte
}

TEST(StreamDecoder, NeverGivesHalfACharacter) {
  const std::string text = "aé你😀👩‍👩‍👧‍👦 世界🇩🇪";
  // Every byte is a token, so every character arrives in parts.
  StreamDecoder decoder(default_model());
  std::string out;
  const Ids ids = default_model().encode(text).value();
  ASSERT_EQ(ids.size(), text.size());
  for (const std::int32_t id : ids) {
    const std::string piece = decoder.push(id);
    ASSERT_TRUE(is_valid_utf8(piece));
    ASSERT_EQ(piece.find("\uFFFD"), std::string::npos);
    out += piece;
    ASSERT_EQ(text.substr(0, out.size()), out);
  }
  EXPECT_EQ(out, text);
  EXPECT_EQ(decoder.flush(), "");
}

TEST(StreamDecoder, FlushesWhatIsLeftAtEverySplit) {
  for (const std::string_view character : {"é", "你", "😀"}) {
    for (std::size_t n = 1; n < character.size(); ++n) {
      StreamDecoder decoder(small());
      for (const char c : character.substr(0, n)) EXPECT_EQ(decoder.push(static_cast<unsigned char>(c)), "");
      EXPECT_EQ(decoder.flush(), "\uFFFD");
      EXPECT_EQ(decoder.flush(), "");
      EXPECT_EQ(decoder.push('x'), "x");  // ready for another text
    }
  }
}

TEST(StreamDecoder, EqualsTheLossyTextOfTheWhole) {
  std::mt19937 rng(4);
  for (int round = 0; round < 3000; ++round) {
    Ids ids;
    for (std::size_t i = rng() % 10; i > 0; --i) {
      const std::vector<std::int32_t> some = {'a',  0xE4, 0xBD, 0xA0, 0xF0,  0x9F,
                                              0x98, 0x80, 0xFF, 259,  kThink};
      ids.push_back(some[rng() % some.size()]);
    }
    StreamDecoder decoder(small());
    std::string out;
    for (const std::int32_t id : ids) out += decoder.push(id);
    out += decoder.flush();
    ASSERT_EQ(out, to_valid_utf8(small().decode(ids).value()));
  }
}

TEST(StreamDecoder, GivesBadBytesAsSoonAsTheyAreKnownToBeBad) {
  StreamDecoder decoder(small());
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push(kThink), "\uFFFD<think>");
  EXPECT_EQ(decoder.push(0xFF), "\uFFFD");
  EXPECT_EQ(decoder.push(-5), "");  // unknown ids are ignored
  EXPECT_EQ(decoder.push(99999), "");
  EXPECT_EQ(decoder.push(0xE4), "");
  EXPECT_EQ(decoder.push(99999), "");
  EXPECT_EQ(decoder.push(0xBD), "");
  EXPECT_EQ(decoder.push(0xA0), "你");
}

TEST(TokenizerLoad, TakesADirectoryOrAFile) {
  EXPECT_TRUE(Tokenizer::load(HADAL_TEST_DATA "/../../models/default"));
  EXPECT_TRUE(Tokenizer::load(HADAL_TEST_DATA "/../../models/default/tokenizer.json"));
  const auto missing = Tokenizer::load("/no/such/model");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), ErrorCode::not_found);
  EXPECT_THAT(missing.error().message(), HasSubstr("/no/such/model: cannot open"));

  const auto folder = std::filesystem::path(::testing::TempDir()) / "hadal_tokenizer_test";
  std::filesystem::create_directories(folder);
  const auto empty = Tokenizer::load(folder);
  ASSERT_FALSE(empty);
  EXPECT_THAT(empty.error().message(), HasSubstr("hadal_tokenizer_test/tokenizer.json: cannot open"));
  std::ofstream(folder / "tokenizer.json") << "{\"model\": 1";
  const auto broken = Tokenizer::load(folder);
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code(), ErrorCode::corrupt);
  EXPECT_THAT(broken.error().message(), HasSubstr("hadal_tokenizer_test/tokenizer.json: not JSON:"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace hadal
