// hadal tokenize and hadal detokenize as a user runs them.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace {

using ::testing::HasSubstr;

const std::string kModel = std::string(" -m ") + HADAL_TEST_DATA "/../../models/default ";

struct Outcome {
  int exit_code;
  std::string out;
  std::string err;
};

class TokenizeCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              (std::string("hadal_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static std::string slurp(const std::filesystem::path& path) {
    std::stringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }

  Outcome run(const std::string& arguments, const std::string& input) const {
    std::ofstream(folder_ / "in", std::ios::binary) << input;
    const std::string at = folder_.string();
    const int status = std::system(
        (HADAL_BINARY " " + arguments + " <" + at + "/in >" + at + "/out 2>" + at + "/err").c_str());
    return {WEXITSTATUS(status), slurp(folder_ / "out"), slurp(folder_ / "err")};
  }

  std::filesystem::path folder_;
};

TEST_F(TokenizeCommand, BytesSurviveTheRoundTrip) {
  std::string bytes = "Hi 你好 🎉<think>\n";
  for (int b = 0; b < 256; ++b) bytes.push_back(static_cast<char>(b));
  for (const std::string flags : {"", "--ids", "--specials", "--ids --specials"}) {
    const Outcome ids = run("tokenize" + kModel + flags, bytes);
    ASSERT_EQ(ids.exit_code, 0) << ids.err;
    EXPECT_EQ(ids.err, "");
    const Outcome back = run("detokenize" + kModel, ids.out);
    ASSERT_EQ(back.exit_code, 0) << back.err;
    EXPECT_EQ(back.out, bytes);
  }
}

TEST_F(TokenizeCommand, PrintsIds) {
  EXPECT_EQ(run("tokenize --ids" + kModel, "Hi").out, "[42,75]\n");
  EXPECT_EQ(run("tokenize --ids" + kModel, "").out, "[]\n");
  EXPECT_EQ(run("tokenize --ids --specials" + kModel, "<think>").out, "[280]\n");
  EXPECT_EQ(nlohmann::json::parse(run("tokenize --ids" + kModel, "<think>").out).size(), 7u);
  const auto pairs = nlohmann::json::parse(run("tokenize" + kModel, "H\xFF\"").out);
  ASSERT_EQ(pairs.size(), 3u);
  EXPECT_EQ(pairs[0], nlohmann::json({{"id", 42}, {"text", "H"}}));
  EXPECT_EQ(pairs[1]["text"], "\uFFFD");
  EXPECT_EQ(pairs[2]["text"], "\"");
  EXPECT_THAT(run("tokenize --ids --stats" + kModel, "Hi").err, HasSubstr("2 bytes to 2 ids in "));
}

TEST_F(TokenizeCommand, FailsInOneLine) {
  const struct {
    std::string arguments;
    std::string input;
    int exit_code;
    std::string message;
  } cases[] = {
      {"tokenize -m /no/such", "", 1, "hadal: /no/such: cannot open: No such file or directory\n"},
      {"tokenize -m " + folder_.string() + "/in", "{", 1, "/in: not JSON: "},
      {"detokenize" + kModel, "[1,", 1, "hadal: stdin: not JSON: "},
      {"detokenize" + kModel, "", 1, "hadal: stdin: not JSON: "},
      {"detokenize" + kModel, "{\"id\":1}", 1, "hadal: stdin: not a JSON array"},
      {"detokenize" + kModel, "[1,\"2\"]", 1,
       "the element at index 1 is neither an id nor an object with one"},
      {"detokenize" + kModel, "[4294967297]", 1, "the element at index 0 is neither"},
      {"detokenize" + kModel, "[{\"text\":\"a\"}]", 1, "the element at index 0 is neither"},
      {"detokenize" + kModel, "[1,320]", 1, "hadal: stdin: id 320 at index 1 is out of range"},
      {"detokenize" + kModel, "[-1]", 1, "hadal: stdin: id -1 at index 0 is out of range"},
      {"tokenize --no-such", "", 2, "--no-such"},
      {"detokenize surplus", "", 2, "surplus"},
  };
  for (const auto& entry : cases) {
    const Outcome outcome = run(entry.arguments, entry.input);
    EXPECT_EQ(outcome.exit_code, entry.exit_code) << entry.arguments;
    EXPECT_EQ(outcome.out, "") << entry.arguments;
    EXPECT_THAT(outcome.err, HasSubstr(entry.message)) << entry.arguments;
    if (entry.exit_code == 1) {
      EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    }
  }
}

TEST_F(TokenizeCommand, ExplainsItself) {
  for (const std::string command : {"tokenize", "detokenize"}) {
    const Outcome outcome = run(command + " --help", "");
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_THAT(outcome.out, HasSubstr("Example:"));
    EXPECT_THAT(outcome.out, HasSubstr("hadal " + command));
  }
}

}  // namespace
