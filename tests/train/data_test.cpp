#include "train/data.h"

#include <algorithm>
#include <fstream>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/corpus.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using test::RunDirectory;
using testing::HasSubstr;

std::vector<std::int32_t> counting(std::int32_t first, std::int32_t n) {
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < n; ++i) tokens.push_back(first + i);
  return tokens;
}

TEST(TokenFile, GivesBackWhatWasWritten) {
  const RunDirectory directory;
  for (const std::int64_t vocab : {1000, 100000}) {
    const std::vector<std::int32_t> tokens = counting(static_cast<std::int32_t>(vocab) - 77, 77);
    std::vector<std::uint8_t> counts(77);
    for (std::size_t i = 0; i < 77; ++i) counts[i] = i % 3 == 0 ? 1 : 0;
    for (const bool masked : {false, true}) {
      const fs::path path = directory.path() / "a.tok";
      ASSERT_TRUE(write_token_file(path, {vocab, 5}, tokens, masked ? counts : std::vector<std::uint8_t>())
                      .has_value());
      const auto file = TokenFile::open(path);
      ASSERT_TRUE(file.has_value()) << file.error().message();
      EXPECT_EQ(file->info(), (TokenFileInfo{vocab, 5}));
      ASSERT_EQ(file->size(), 77);
      std::vector<std::int32_t> read(20);
      std::vector<std::uint8_t> read_counts(20);
      file->read(13, read);
      file->read_counts(13, read_counts);
      EXPECT_TRUE(std::equal(read.begin(), read.end(), tokens.begin() + 13));
      for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(read_counts[i], masked ? counts[13 + i] : 1);
    }
  }
}

TEST(TokenFile, DamageIsFound) {
  const RunDirectory directory;
  const fs::path path = directory.path() / "a.tok";
  ASSERT_TRUE(write_token_file(path, {300, 5}, counting(0, 100), {}).has_value());
  const auto damaged = [&](std::streamoff at, char byte) {
    const fs::path copy = directory.path() / "b.tok";
    fs::copy_file(path, copy, fs::copy_options::overwrite_existing);
    std::fstream file(copy, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put(byte);
    file.close();
    const auto opened = TokenFile::open(copy);
    return opened ? std::string("accepted") : opened.error().message();
  };
  EXPECT_THAT(damaged(0, 'X'), HasSubstr("not a shard of tokens"));
  EXPECT_THAT(damaged(8, 9), HasSubstr("version 9"));
  EXPECT_THAT(damaged(12, 3), HasSubstr("makes no sense"));
  EXPECT_THAT(damaged(24, 101), HasSubstr("its header says"));
  EXPECT_THAT(damaged(21, 0), HasSubstr("is not below its vocabulary of 44"));
  EXPECT_THAT(damaged(100, 77), HasSubstr("checksum"));
  fs::resize_file(path, 100);
  EXPECT_THAT(TokenFile::open(path).error().message(), HasSubstr("its header says"));
  fs::resize_file(path, 10);
  EXPECT_THAT(TokenFile::open(path).error().message(), HasSubstr("too short"));
}

TEST(Permutation, IsOne) {
  for (const std::int64_t n : {1, 2, 3, 64, 1000, 4097}) {
    const Permutation permutation(n, 3, 9), other(n, 4, 9);
    std::set<std::int64_t> seen;
    std::int64_t same = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t at = permutation(i);
      EXPECT_TRUE(at >= 0 && at < n);
      seen.insert(at);
      same += at == other(i) ? 1 : 0;
    }
    EXPECT_EQ(static_cast<std::int64_t>(seen.size()), n);
    if (n >= 1000) {
      EXPECT_LT(same, 20);
    }
  }
}

class DataTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"a", "b"}) fs::create_directories(directory_.path() / name);
    // a: two shards of the tokens 0 .. 999; b: one of 5000 .. 5299
    ASSERT_TRUE(write_token_file(directory_.path() / "a/shard-00000.tok", {10000, 5}, counting(0, 501), {})
                    .has_value());
    ASSERT_TRUE(write_token_file(directory_.path() / "a/shard-00001.tok", {10000, 5}, counting(501, 499), {})
                    .has_value());
    ASSERT_TRUE(write_token_file(directory_.path() / "b/shard-00000.tok", {10000, 5}, counting(5000, 300), {})
                    .has_value());
  }
  RunDirectory directory_;
};

TEST_F(DataTest, AnEpochShowsEveryWindowOnce) {
  const DataSource source{directory_.path() / "a", 1};
  const auto data = TrainingData::open({&source, 1}, 42);
  ASSERT_TRUE(data.has_value());
  std::set<std::int32_t> starts, again;
  bool shuffled = false, cut_elsewhere = false;
  for (std::int64_t k = 0; k < 99; ++k) {
    std::vector<std::int32_t> tokens(12);
    data->sequence(0, k, 10, tokens, {});
    EXPECT_EQ(tokens, counting(tokens[0], 12));  // across the border of the shards too
    EXPECT_EQ(tokens[0] % 10, 0);
    shuffled = shuffled || tokens[0] != k * 10;
    starts.insert(tokens[0]);
    data->sequence(0, k + 99, 10, tokens, {});
    EXPECT_EQ(tokens, counting(tokens[0], 12));
    cut_elsewhere = cut_elsewhere || tokens[0] % 10 != 0;
    again.insert(tokens[0]);
  }
  EXPECT_TRUE(shuffled);
  EXPECT_EQ(starts.size(), 99U);
  EXPECT_EQ(again.size(), 99U);
  EXPECT_TRUE(cut_elsewhere);
}

TEST_F(DataTest, MixtureKeepsItsShares) {
  const DataSource sources[] = {{directory_.path() / "a", 3}, {directory_.path() / "b", 1}};
  const auto data = TrainingData::open(sources, 42);
  ASSERT_TRUE(data.has_value());
  std::int64_t of_b = 0;
  std::map<std::int32_t, int> times;
  for (std::int64_t k = 0; k < 2048; ++k) {
    std::vector<std::int32_t> tokens(12);
    data->sequence(1, k, 10, tokens, {});
    of_b += tokens[0] >= 5000 ? 1 : 0;
    for (const std::int32_t token : tokens) ++times[token];
  }
  EXPECT_EQ(of_b, 512);
  // Within a source all text has come about equally often: 1536 / 99 rounds of windows of 12 every 10, each
  // of which shows a token once or twice.
  for (std::int32_t token = 20; token < 980; ++token) {
    EXPECT_GE(times[token], 14) << token;
    EXPECT_LE(times[token], 26) << token;
  }
}

TEST_F(DataTest, TooShortOrStrangeDataIsRefused) {
  const DataSource source{directory_.path() / "b", 1};
  const auto data = TrainingData::open({&source, 1}, 42);
  ASSERT_TRUE(data.has_value());
  EXPECT_TRUE(data->check_length(300).has_value());
  EXPECT_THAT(data->check_length(301).error().message(),
              HasSubstr("300 tokens, too few for one sequence of 301"));
  ASSERT_TRUE(
      write_token_file(directory_.path() / "b/shard-00001.tok", {10000, 6}, counting(0, 9), {}).has_value());
  EXPECT_THAT(TrainingData::open({&source, 1}, 42).error().message(), HasSubstr("another tokenizer"));
  const DataSource nowhere{directory_.path(), 1};
  EXPECT_THAT(TrainingData::open({&nowhere, 1}, 42).error().message(), HasSubstr("no shard-*.tok there"));
}

class CorpusTest : public testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(directory_.path() / name, std::ios::binary) << text;
    return (directory_.path() / name).string();
  }
  Result<CorpusSummary> build(const std::vector<std::string>& files, double held_out = 0) {
    CorpusOptions options;
    options.held_out = held_out;
    options.tokenizer_hash = 1;
    return build_corpus(tokenizer_, files, directory_.path() / "out", options, pool_);
  }
  std::string problem(const std::vector<std::string>& files) {
    const auto built = build(files);
    return built ? "accepted" : built.error().message();
  }
  // All tokens of `part` as text, and the same with what does not count in brackets.
  std::string text_of(const std::string& part, bool marks = false) {
    const auto stream = TokenStream::open(directory_.path() / part);
    EXPECT_TRUE(stream.has_value()) << stream.error().message();
    const auto n = static_cast<std::size_t>(stream->size());
    std::vector<std::int32_t> tokens(n);
    std::vector<std::uint8_t> counts(n);
    stream->read(0, tokens, counts);
    if (!marks) return *tokenizer_.decode(tokens);
    std::string text;
    bool counted = true;
    for (std::size_t i = 0; i < n; ++i) {
      if ((counts[i] != 0) != counted) text += counted ? "[" : "]";
      counted = counts[i] != 0;
      text += *tokenizer_.decode(std::span(tokens).subspan(i, 1));
    }
    return counted ? text : text + "]";
  }

  RunDirectory directory_;
  ThreadPool pool_{2};
  Tokenizer tokenizer_ = *Tokenizer::load(HADAL_DEFAULT_TOKENIZER);
};

TEST_F(CorpusTest, TextAndJsonLines) {
  const auto built = build(
      {file("a.txt", "Hello, world"), file("b.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"zwölf\"}\n")});
  ASSERT_TRUE(built.has_value()) << built.error().message();
  EXPECT_EQ(built->documents, 3);
  EXPECT_EQ(built->counted, built->tokens);
  const std::string bos = "<｜begin▁of▁sentence｜>", eos = "<｜end▁of▁sentence｜>";
  EXPECT_EQ(text_of("out"), bos + "Hello, world" + eos + bos + "one" + eos + bos + "zwölf" + eos);
}

TEST_F(CorpusTest, TheEndOfATextIsHeldOut) {
  ASSERT_TRUE(build({file("a.txt", std::string(98, 'a'))}, 0.1).has_value());
  EXPECT_EQ(text_of("out/held_out"), std::string(9, 'a') + "<｜end▁of▁sentence｜>");
}

TEST_F(CorpusTest, OfConversationsTheAssistantCounts) {
  const std::string line = R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":"hi"},)"
                           R"({"role":"assistant","content":"yo"},{"role":"user","content":"1+1?"},)"
                           R"({"role":"assistant","reasoning_content":"two","content":"2"}]})";
  const auto built = build({file("c.jsonl", line + "\n")});
  ASSERT_TRUE(built.has_value()) << built.error().message();
  EXPECT_EQ(text_of("out", true),
            "[<｜begin▁of▁sentence｜>S<｜User｜>hi<｜Assistant｜></think>]yo<｜end▁of▁sentence｜>"
            "[<｜User｜>1+1?<｜Assistant｜><think>]two</think>2<｜end▁of▁sentence｜>");
}

TEST_F(CorpusTest, WhatIsNoTextIsNamed) {
  EXPECT_THAT(problem({file("e.txt", "")}), HasSubstr("e.txt: empty"));
  EXPECT_THAT(problem({file("b.txt", std::string("ab\0c", 4))}),
              HasSubstr("b.txt: not text: byte 2 is 0x00"));
  EXPECT_THAT(problem({file("x.txt", "abc\xff")}), HasSubstr("x.txt: not text: byte 3 is 0xff"));
  EXPECT_THAT(problem({file("j.jsonl", "{\"text\": \"a\"}\n{\"txt\": 1}\n")}),
              HasSubstr("j.jsonl:2: neither \"text\""));
  EXPECT_THAT(problem({file("k.jsonl", "{\"text\"")}), HasSubstr("k.jsonl:1: "));
  EXPECT_THAT(problem({(directory_.path() / "none.txt").string()}), HasSubstr("none.txt"));
  EXPECT_THAT(problem({}), HasSubstr("no files"));
}

// Tokenised in pieces on several threads as at once.
TEST_F(CorpusTest, LargeTextInPieces) {
  std::string text;
  for (int i = 0; text.size() < 3'500'000; ++i)
    text += fmt::format("line {} of  some text,\nwith lines\n\nand {}\n", i, i * 7);
  ASSERT_TRUE(build({file("large.txt", text)}).has_value());
  const auto stream = TokenStream::open(directory_.path() / "out");
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(stream->size()) - 2);
  stream->read(1, tokens, {});
  EXPECT_TRUE(tokens == *tokenizer_.encode(text));
}

}  // namespace
}  // namespace hadal
