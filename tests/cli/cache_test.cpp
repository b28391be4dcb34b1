// hadal cache, as somebody at a shell meets it.
#include <algorithm>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_command.h"
#include "engine/cache_index.h"
#include "engine/scheduler_fixture.h"

namespace hadal {
namespace {

using testing::HasSubstr;

class CacheCommand : public testing::Test {
 protected:
  static constexpr int kFiles = 4;

  // A conversation of three files, each on the one before, and one of its own.
  void SetUp() override {
    const Engine engine = test::open_embedded();
    const auto runner = make_model_runner(engine);
    DiskCacheOptions options;
    options.directory = cache();
    options.fingerprint = runner->fingerprint();
    auto disk = DiskCache::open(runner->layout(), options);
    ASSERT_TRUE(disk.has_value());
    Scheduler scheduler(*runner, disk->get(), {});
    auto history = test::random_tokens(300, 1);
    for (std::uint64_t turn = 0; turn < 3; ++turn) {
      const auto said = test::run(scheduler, test::request_of(history, 10)).tokens;
      history.insert(history.end(), said.begin(), said.end());
      const auto more = test::random_tokens(200, 7 + turn);
      history.insert(history.end(), more.begin(), more.end());
    }
    test::run(scheduler, test::request_of(test::random_tokens(400, 2), 10));
    scheduler.drain(std::chrono::seconds(60));
  }
  std::filesystem::path cache() const { return std::filesystem::path(directory_.path()) / "cache"; }
  std::string arguments(const std::string& command) const {
    return fmt::format("cache {} {}", command, cache().string());
  }
  std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> found;
    for (const auto& file : std::filesystem::directory_iterator(cache()))
      if (file.path().extension() == ".prefix") found.push_back(file.path());
    return found;
  }
  static CacheFileHeader header(const std::filesystem::path& path) { return CacheFile::open(path)->header(); }

  TempDirectory directory_;
};

TEST_F(CacheCommand, ListsAndVerifies) {
  auto result = run_command(arguments("list"));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr(" tokens "));
  EXPECT_THAT(result.out, HasSubstr(fmt::format("{} files, ", kFiles)));
  result = run_command(arguments("list --json"));
  const auto list = nlohmann::json::parse(result.out);
  ASSERT_EQ(list.size(), static_cast<std::size_t>(kFiles));
  for (std::size_t i = 0; i < list.size(); ++i) {
    EXPECT_EQ(list[i]["bytes"], std::filesystem::file_size(cache() / std::string(list[i]["file"])));
    EXPECT_EQ(list[i]["problem"], "");
    if (i == 0) continue;
    EXPECT_GE(list[i]["last_used"], list[i - 1]["last_used"]) << "oldest first";
  }
  EXPECT_EQ(run_command(arguments("verify")).exit_code, 0);
}

TEST_F(CacheCommand, PruneTakesWhatIsBrokenAndWhatBuildsOnIt) {
  for (const auto& name : files()) {
    if (header(name).parent != 0 || header(name).length > 350) continue;
    std::fstream file(name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-100, std::ios::end);
    file.put('\x77');
  }
  const auto verified = run_command(arguments("verify"));
  EXPECT_EQ(verified.exit_code, 1);
  EXPECT_THAT(verified.err, HasSubstr("1 of 4 files are broken; hadal cache prune removes them"));
  const auto pruned = run_command(arguments("prune --size 1G"));
  EXPECT_EQ(pruned.exit_code, 0) << pruned.err;
  EXPECT_THAT(pruned.out, HasSubstr("removed 3 files; 1 are left"));
  EXPECT_EQ(run_command(arguments("verify")).exit_code, 0);
  EXPECT_EQ(files().size(), 1U);
}

TEST_F(CacheCommand, PruneKeepsWithinTheSizeAndNeverTakesAParentFirst) {
  std::int64_t bytes = 0;
  for (const auto& name : files()) bytes += static_cast<std::int64_t>(std::filesystem::file_size(name));
  for (std::int64_t size = bytes; size > 0; size -= bytes / 9) {
    const auto pruned = run_command(arguments(fmt::format("prune --size {}", size)));
    ASSERT_EQ(pruned.exit_code, 0) << pruned.err;
    std::int64_t left = 0;
    std::vector<std::uint64_t> ids;
    for (const auto& name : files()) {
      left += static_cast<std::int64_t>(std::filesystem::file_size(name));
      ids.push_back(header(name).id);
    }
    EXPECT_LE(left, size);
    for (const auto& name : files()) {
      const std::uint64_t parent = header(name).parent;
      EXPECT_TRUE(parent == 0 || std::find(ids.begin(), ids.end(), parent) != ids.end()) << name;
    }
  }
  EXPECT_EQ(run_command(arguments("prune --size 0")).exit_code, 0);
  EXPECT_TRUE(files().empty());
}

TEST_F(CacheCommand, SaysWhatIsWrong) {
  const auto fails = [&](const std::string& command, const std::string& expected, int code = 1) {
    const auto result = run_command(command);
    EXPECT_EQ(result.exit_code, code) << command;
    EXPECT_THAT(result.err, HasSubstr(expected)) << command;
  };
  fails("cache list /no/such/directory", "/no/such/directory is not a directory");
  fails("cache verify /etc/passwd", "/etc/passwd is not a directory");
  fails(arguments("prune"), "--size is required", 2);
  fails(arguments("prune --size many"), "--size", 2);
  fails("cache", "subcommand is required", 2);
  {
    const auto lock = DirectoryLock::take(cache());
    fails(arguments("prune --size 0"), "another process of hadal uses this directory");
    EXPECT_EQ(files().size(), static_cast<std::size_t>(kFiles));
    EXPECT_EQ(run_command(arguments("list")).exit_code, 0) << "looking harms nobody";
  }
  std::ofstream(cache() / "index.sqlite", std::ios::trunc)
      << "this is no database, though it is long enough for one";
  for (const char* suffix : {"-wal", "-shm"})
    std::filesystem::remove(cache() / ("index.sqlite" + std::string(suffix)));
  const auto result = run_command(arguments("list"));
  EXPECT_EQ(result.exit_code, 0) << "the files are what counts";
  EXPECT_THAT(result.err, HasSubstr("index of the cache: cannot"));
  EXPECT_THAT(result.out, HasSubstr("4 files"));
}

}  // namespace
}  // namespace hadal
