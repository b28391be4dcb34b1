// DeepSeek-V4's own tokenizer.json against what the `tokenizers` library gave for a few hundred short texts
// (tests/data/tokenizer_golden.json, written by tools/compare_tokenizer.py --write-golden). The file is too
// large for the tree: it is looked for where HADAL_V4_TOKENIZER points, then in build/oracle, and without it
// the tests skip.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <hadal/tokenizer.h>

namespace hadal {
namespace {

using Ids = std::vector<std::int32_t>;

class V4Tokenizer : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* const named = std::getenv("HADAL_V4_TOKENIZER");
    const std::filesystem::path path =
        named != nullptr ? named : HADAL_TEST_DATA "/../../build/oracle/tokenizer.json";
    if (named == nullptr && !std::filesystem::exists(path)) return;
    auto loaded = Tokenizer::load(path);
    ASSERT_TRUE(loaded) << loaded.error().message();
    tokenizer_ = new Tokenizer(std::move(*loaded));
  }
  static void TearDownTestSuite() { delete tokenizer_; }

  void SetUp() override {
    if (tokenizer_ == nullptr) {
      GTEST_SKIP() << "no DeepSeek-V4 tokenizer.json: set HADAL_V4_TOKENIZER or put it in build/oracle/";
    }
  }

  static Tokenizer* tokenizer_;
};

Tokenizer* V4Tokenizer::tokenizer_ = nullptr;

TEST_F(V4Tokenizer, HasTheDocumentedIds) {
  EXPECT_EQ(tokenizer_->vocab_size(), 129280);
  EXPECT_EQ(tokenizer_->id_of("<｜begin▁of▁sentence｜>"), 0);
  EXPECT_EQ(tokenizer_->id_of("<｜end▁of▁sentence｜>"), 1);
  EXPECT_EQ(tokenizer_->id_of("<｜User｜>"), 128803);
  EXPECT_EQ(tokenizer_->id_of("<｜Assistant｜>"), 128804);
  EXPECT_EQ(tokenizer_->id_of("<think>"), 128821);
  EXPECT_EQ(tokenizer_->id_of("</think>"), 128822);
  EXPECT_EQ(tokenizer_->id_of("｜DSML｜"), 128825);
}

TEST_F(V4Tokenizer, EqualsTheRecordedIds) {
  std::ifstream file(HADAL_TEST_DATA "/tokenizer_golden.json");
  const auto cases = nlohmann::json::parse(file);
  ASSERT_GE(cases.size(), 300u);
  for (const auto& entry : cases) {
    const auto text = entry["text"].get<std::string>();
    const auto expected = entry["ids"].get<Ids>();
    const Ids ids = tokenizer_->encode_with_specials(text).value();
    EXPECT_EQ(ids, expected) << text;
    EXPECT_EQ(tokenizer_->decode(ids).value(), text);
  }
}

TEST_F(V4Tokenizer, PlainTextCannotSpellAnyOfItsAddedTokens) {
  int n_added = 0;
  for (std::int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (!tokenizer_->is_added(id)) continue;
    ++n_added;
    const std::string text(tokenizer_->token_bytes(id));
    const Ids ids = tokenizer_->encode(text).value();
    for (const std::int32_t part : ids) ASSERT_FALSE(tokenizer_->is_added(part)) << text;
    ASSERT_EQ(tokenizer_->decode(ids).value(), text);
    ASSERT_EQ(tokenizer_->encode_with_specials(text).value(), Ids({id})) << text;
  }
  EXPECT_EQ(n_added, 1283);
}

TEST_F(V4Tokenizer, BrokenUtf8SurvivesAndLeavesTheRestAlone) {
  const Ids hello = tokenizer_->encode("Hello, 世界!").value();
  Ids expected = hello;
  const Ids broken = tokenizer_->encode("\xFF\xE4\xBD").value();
  expected.insert(expected.end(), broken.begin(), broken.end());
  expected.insert(expected.end(), hello.begin(), hello.end());
  EXPECT_EQ(tokenizer_->encode("Hello, 世界!\xFF\xE4\xBDHello, 世界!").value(), expected);
  EXPECT_EQ(tokenizer_->decode(broken).value(), "\xFF\xE4\xBD");
}

}  // namespace
}  // namespace hadal
