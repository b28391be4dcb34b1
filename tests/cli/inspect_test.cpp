// hadal inspect and hadal init as commands: the published numbers, and every kind of broken model directory
// as one line on stderr and exit code 1.
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_command.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

std::string reference_model(const std::string& name) {
  return std::string(HADAL_TEST_DATA) + "/reference/models/" + name;
}

// A copy of the model, to be broken.
void copy_model(const std::string& name, const TempDirectory& to) {
  for (const auto& entry : fs::directory_iterator(reference_model(name))) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with("golden.")) fs::copy_file(entry.path(), fs::path(to.path()) / file);
  }
}

std::string read_all(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// One line on stderr, with `part` in it, and exit code 1.
void expect_failure(const CommandResult& result, const std::string& part) {
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.err, testing::StartsWith("hadal: "));
  EXPECT_THAT(result.err, HasSubstr(part));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

TEST(Inspect, PresetsHaveThePublishedNumbers) {
  const CommandResult flash = run_command("inspect --preset flash --json");
  ASSERT_EQ(flash.exit_code, 0) << flash.err;
  EXPECT_EQ(flash.err, "");
  json f = json::parse(flash.out);
  EXPECT_EQ(f["tensors"], 69187);
  EXPECT_EQ(f["bytes"], 159609485896);
  EXPECT_EQ(
      f["dtypes"],
      json({{"BF16", 433}, {"F32", 417}, {"F8_E4M3", 375}, {"F8_E8M0", 34167}, {"I64", 3}, {"I8", 33792}}));
  EXPECT_EQ(f["parameters"], 284332240471);
  EXPECT_EQ(f["active_parameters"], 13270101591);
  EXPECT_EQ(f["kv_bytes_per_token"], 3514.25);
  EXPECT_EQ(f["state_bytes_per_sequence"], 3214336);
  json p = json::parse(run_command("inspect --json --preset pro").out);
  EXPECT_EQ(p["tensors"], 145116);
  EXPECT_EQ(p["bytes"], 864704792696);
  EXPECT_EQ(p["kv_bytes_per_token"], 5031.4375);
  json v = json::parse(run_command("inspect --json --preset v3.2").out);
  EXPECT_EQ(v["kv_bytes_per_token"], 48068);
  EXPECT_EQ(v["tensors"], 90854);  // without the MTP layer
  const CommandResult text = run_command("inspect --preset flash");
  EXPECT_THAT(text.out, HasSubstr("69187"));
  EXPECT_THAT(text.out, HasSubstr("159609485896 (159.61 GB)"));
  EXPECT_THAT(text.out, HasSubstr("3514.25 bytes per token"));
}

TEST(Inspect, DirectoriesAreCounted) {
  const CommandResult result = run_command("inspect --json '" + reference_model("t1-m2") + "'");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  json t1 = json::parse(result.out);
  EXPECT_EQ(t1["tensors"], t1["expected_tensors"]);
  EXPECT_EQ(t1["bytes"], t1["expected_bytes"]);
  EXPECT_TRUE(t1["problem"].is_null());
  EXPECT_EQ(json::parse(run_command("inspect --json '" + reference_model("t2-m2") + "'").out)["problem"],
            nullptr);
}

TEST(Inspect, WrongCommandLinesExitWithTwo) {
  EXPECT_EQ(run_command("inspect").exit_code, 2);
  EXPECT_EQ(run_command("inspect --preset medium").exit_code, 2);
  EXPECT_EQ(run_command("inspect --preset flash somewhere").exit_code, 2);
  EXPECT_EQ(run_command("init --preset flash").exit_code, 2);
  EXPECT_EQ(run_command("init somewhere").exit_code, 2);
  EXPECT_THAT(run_command("inspect --help").out, HasSubstr("Example"));
}

TEST(Inspect, FullDisksAreReported) {
  expect_failure(run_command("--version >/dev/null; ('" + std::string(HADAL_BINARY) +
                             "' inspect --preset flash >/dev/full)"),
                 "stdout: cannot write: No space left on device");
}

TEST(BadModel, NothingThere) {
  expect_failure(run_command("inspect /no/such/model"), "/no/such/model/config.json: cannot open");
  const TempDirectory dir;
  dir.file("config.json", read_all(reference_model("t1-m2") + "/config.json"));
  expect_failure(run_command("inspect '" + dir.path() + "'"), "there is neither model.safetensors nor");
}

TEST(BadModel, BrokenConfigs) {
  const TempDirectory dir;
  copy_model("t1-m2", dir);
  const std::string good = read_all(dir.path() + "/config.json");
  const auto with = [&](const char* key, const json& value) {
    json config = json::parse(good);
    config[key] = value;
    dir.file("config.json", config.dump());
    return run_command("inspect '" + dir.path() + "'");
  };
  expect_failure(with("hidden_size", -5), "config.json: 'hidden_size' is -5, expected an integer from");
  expect_failure(with("hidden_size", 1e30), "'hidden_size' is 1e+30");
  expect_failure(with("num_hidden_layers", 6), "6 layers and 1 MTP blocks, but 8 compression ratios");
  expect_failure(with("num_experts_per_tok", 9), "9 experts per token, but only 8 routed experts");
  expect_failure(with("vocab_size", nullptr), "'vocab_size' is missing");
  dir.file("config.json", good.substr(0, 100));
  expect_failure(run_command("inspect '" + dir.path() + "'"), "config.json: not a JSON object");
  // Another shape than the weights have: still inspected, and named.
  const CommandResult other = with("vocab_size", 321);
  expect_failure(other, "'embed.weight' has shape [320, 256], the config asks for [321, 256] (and ");
  EXPECT_THAT(other.out, HasSubstr("by config"));
}

TEST(BadModel, BrokenWeights) {
  const TempDirectory dir;
  copy_model("t1-m2", dir);
  const std::string good = read_all(dir.path() + "/model.safetensors");
  const auto with = [&](const std::string& bytes) {
    dir.file("model.safetensors", bytes);
    return run_command("inspect '" + dir.path() + "'");
  };
  expect_failure(with(""), "model.safetensors: 0 bytes are too few");
  expect_failure(with(good.substr(0, 1000)), "truncated");
  expect_failure(with(good.substr(0, good.size() - 1)), "lie outside the file's");
  expect_failure(with(good + "x"), "1 bytes at the end belong to no tensor");
  expect_failure(with(std::string(8, '\x7f') + good.substr(8)), "more than 100 MB");
  std::string renamed = good;
  renamed.replace(renamed.find("\"norm.weight\""), 13, "\"gorm.weight\"");
  expect_failure(with(renamed), "'norm.weight' is missing (and 1 more such problem)");
  std::string same = good;
  same.replace(same.find("\"norm.weight\""), 13, "\"head.weight\"");
  expect_failure(with(same), "tensor 'head.weight' is declared twice");
}

TEST(BadModel, IndexesThatLeaveTheDirectory) {
  const TempDirectory dir;
  copy_model("t2-m2", dir);
  const std::string good = read_all(dir.path() + "/model.safetensors.index.json");
  const auto with_shard = [&](const std::string& file) {
    json index = json::parse(good);
    const std::string first = index["weight_map"].begin().value();
    for (auto& name : index["weight_map"]) {
      if (name == first) name = file;
    }
    dir.file("model.safetensors.index.json", index.dump());
    return run_command("inspect '" + dir.path() + "'");
  };
  expect_failure(with_shard("../x.safetensors"), "is not a plain file name");
  expect_failure(with_shard("/etc/passwd"), "is not a plain file name");
  fs::create_symlink("/etc/passwd", fs::path(dir.path()) / "link.safetensors");
  expect_failure(with_shard("link.safetensors"), "outside the model's directory");
  ASSERT_EQ(::mkfifo((dir.path() + "/pipe.safetensors").c_str(), 0600), 0);
  expect_failure(with_shard("pipe.safetensors"), "not a regular file");
}

TEST(InitCommand, WritesWhatInspectCounts) {
  const TempDirectory dir;
  const std::string config = reference_model("t1-m2") + "/config.json", out = dir.path() + "/random";
  const CommandResult written = run_command("init --config '" + config + "' --seed 7 '" + out + "'");
  ASSERT_EQ(written.exit_code, 0) << written.err;
  EXPECT_EQ(written.out, "");
  json counted = json::parse(run_command("inspect --json '" + out + "'").out);
  EXPECT_EQ(counted["tensors"], counted["expected_tensors"]);
  EXPECT_EQ(counted["bytes"], counted["expected_bytes"]);
  EXPECT_TRUE(counted["problem"].is_null());
  expect_failure(run_command("init --config '" + config + "' '" + out + "'"), "--force");
}

TEST(InitCommand, ReportsAFullDiskAndLeavesNothing) {
  const TempDirectory dir;
  const std::string config = reference_model("t1-m2") + "/config.json";
  // A limit on the size of a file, in blocks of 512 bytes or 1 kB, stands for a full disk.
  const CommandResult result =
      run_command("--version >/dev/null; trap '' XFSZ; ulimit -f 1000; '" + std::string(HADAL_BINARY) +
                  "' init --config '" + config + "' '" + dir.path() + "/random'");
  expect_failure(result, "cannot write");
  EXPECT_FALSE(fs::exists(dir.path() + "/random"));
}

}  // namespace
}  // namespace hadal
