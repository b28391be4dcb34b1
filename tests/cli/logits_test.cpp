// hadal logits as outside checks call it.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_command.h"
#include "golden_data.h"

namespace hadal {
namespace {

using testing::HasSubstr;

class LogitsCommand : public testing::Test {
 protected:
  static std::string model(const std::string& name) {
    return (test::reference_directory() / "models" / name).string();
  }
  static test::GoldenFile golden(const std::string& name, const std::string& mode) {
    return test::GoldenFile::open(test::reference_directory() / "models" / name /
                                  ("golden." + mode + ".safetensors"));
  }
  static std::string ids(const test::GoldenFile& file) {
    return nlohmann::json(file.values<std::int64_t>("tokens")).dump();
  }
  CommandResult logits(const std::string& name, const std::string& tokens, const std::string& options) const {
    directory_.file("ids.json", tokens);
    return run_command(fmt::format("logits -m {} --tokens {}/ids.json --out {}/out.safetensors {}",
                                   model(name), directory_.path(), directory_.path(), options));
  }
  std::vector<float> written(const std::string& tensor = "logits") const {
    return test::GoldenFile::open(directory_.path() + "/out.safetensors").floats(tensor);
  }
  static float worst(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    float most = 0;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
      most = std::max(most, std::fabs(a[i] - b[i]));
    return most;
  }

  TempDirectory directory_;
};

TEST_F(LogitsCommand, MatchesTheRecordedLogitsInEveryNumerics) {
  for (const auto& [numerics, mode] :
       {std::pair{"exact", "m0"}, std::pair{"qsim", "m1"}, std::pair{"official", "m2"}}) {
    const auto expected = golden("t1-m2", mode);
    const auto result = logits("t1-m2", ids(expected), fmt::format("--numerics {} --mtp", numerics));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_LE(worst(written(), expected.floats("prefill.logits")), 1e-4F) << numerics;
    EXPECT_LE(worst(written("mtp_logits"), expected.floats("mtp.logits")), 1e-4F) << numerics;
  }
}

TEST_F(LogitsCommand, ChunksDecodeThreadsAndBatchesGiveTheSameFile) {
  const auto recorded = golden("t1-m2", "m2");
  ASSERT_EQ(logits("t1-m2", ids(recorded), "").exit_code, 0);
  const auto whole = written();
  EXPECT_LE(worst(whole, recorded.floats("prefill.logits")), 1e-4F)
      << "official is the default of published checkpoints";
  for (const std::string options :
       {"--chunk 7", "--prefill 133", "--prefill 0 --threads 1", "--threads 3 --chunk 64"}) {
    ASSERT_EQ(logits("t1-m2", ids(recorded), options).exit_code, 0);
    EXPECT_EQ(written(), whole) << options;
  }
  // A batch: the sequences one after another.
  const auto tokens = recorded.values<std::int64_t>("tokens");
  const nlohmann::json batch = {tokens, std::vector<std::int64_t>(tokens.begin(), tokens.begin() + 50)};
  ASSERT_EQ(logits("t1-m2", batch.dump(), "--prefill 20 --chunk 16").exit_code, 0);
  auto expected = whole;
  expected.insert(expected.end(), whole.begin(), whole.begin() + 50 * 320);
  EXPECT_EQ(written(), expected);
}

TEST_F(LogitsCommand, BadInputGivesOneLineAndOne) {
  const auto one_line = [](const CommandResult& result, const std::string& expected) {
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_THAT(result.err, HasSubstr(expected));
    EXPECT_EQ(result.out, "");
  };
  one_line(logits("t2-m2", "[1, 2, 320]", ""), "id 320, but the model's vocabulary has ids 0 to 319");
  one_line(logits("t2-m2", "[1, -2]", ""), "not a token id");
  one_line(logits("t2-m2", "{\"a\": 1}", ""), "not a JSON array");
  one_line(logits("t2-m2", "[]", ""), "not a JSON array with something in it");
  one_line(logits("t2-m2", "[[1, 2], []]", ""), "not a non-empty array");
  one_line(logits("t2-m2", "[1, 2", ""), "not a JSON array");
  one_line(logits("t2-m2", "[1, 2]", "--mtp"), "has no MTP block");
  one_line(logits("t1-m2", "[1]", "--mtp"), "at least two tokens");
  one_line(logits("t2-m2", nlohmann::json(std::vector<int>(1025, 3)).dump(), ""), "context of 1024");
  one_line(logits("no-such-model", "[1]", ""), "no-such-model");
  one_line(run_command("logits -m " + model("t2-m2") + " --tokens /nowhere.json --out /dev/null"),
           "/nowhere.json");
  EXPECT_FALSE(std::filesystem::exists(directory_.path() + "/out.safetensors"))
      << "a failed run leaves no file";
}

TEST_F(LogitsCommand, BadCommandLineGivesTwo) {
  EXPECT_EQ(run_command("logits").exit_code, 2);
  EXPECT_EQ(run_command("logits -m x --tokens y --out z --numerics fast").exit_code, 2);
  EXPECT_EQ(run_command("logits -m x --tokens y --out z --chunk 0").exit_code, 2);
  EXPECT_EQ(run_command("no-such-command").exit_code, 2);
  EXPECT_EQ(run_command("").exit_code, 2);
  const auto help = run_command("logits --help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Example: hadal logits"));
}

TEST_F(LogitsCommand, FullDiskIsSaidAndLeavesNothing) {
  // A limit on the size of files stands in for a full disk; the shell ignores the signal that comes with it.
  directory_.file("ids.json", "[1, 2, 3, 4, 5, 6, 7, 8]");
  const std::string out = directory_.path() + "/out.safetensors";
  const std::string command =
      fmt::format("trap '' XFSZ; ulimit -f 4; '{}' logits -m {} --tokens {}/ids.json --out {} 2>{}/err",
                  HADAL_BINARY, model("t2-m2"), directory_.path(), out, directory_.path());
  const int status = std::system(fmt::format("bash -c \"{}\"", command).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  std::stringstream text;
  text << std::ifstream(directory_.path() + "/err").rdbuf();
  EXPECT_THAT(text.str(), HasSubstr("cannot write"));
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
    files += static_cast<std::size_t>(entry.path().filename().string().starts_with("out"));
  }
  EXPECT_EQ(files, 0U);
}

}  // namespace
}  // namespace hadal
