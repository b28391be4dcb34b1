// Prefixes on disk: restored bit for bit after a restart, verified, within the budget; whatever happens to
// the files, a request is at worst read again.
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include <gtest/gtest.h>

#include "engine/cache_index.h"
#include "engine/scheduler_fixture.h"

namespace hadal {
namespace {

using test::random_tokens;
using test::request_of;
using test::run;

class DiskCacheTest : public testing::Test {
 protected:
  std::unique_ptr<DiskCache> open(WindowStrategy windows = WindowStrategy::periodic,
                                  std::int64_t budget = std::int64_t{1} << 30) {
    DiskCacheOptions options;
    options.directory = directory_.path() / "cache";
    options.budget_bytes = budget;
    options.fingerprint = runner_->fingerprint();
    options.windows = windows;
    options.notice = [this](std::string_view line) { notices_ += std::string(line) + "\n"; };
    auto cache = DiskCache::open(runner_->layout(), std::move(options));
    EXPECT_TRUE(cache.has_value()) << cache.error().message();
    return std::move(*cache);
  }
  std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> found;
    for (const auto& file : std::filesystem::directory_iterator(directory_.path() / "cache"))
      if (file.path().extension() == ".prefix") found.push_back(file.path());
    std::sort(found.begin(), found.end());
    return found;
  }
  // Three turns, each the history of the next; returns the history and what the last turn said.
  struct Session {
    std::vector<std::int32_t> history, last;
  };
  Session turns(Scheduler& scheduler, int n, std::size_t begin = 500, std::int64_t answer = 100) {
    Session session{random_tokens(begin, 1), {}};
    for (int turn = 0; turn < n; ++turn) {
      const GenerationEnd& end = run(scheduler, request_of(session.history, answer, 5));
      session.last = end.tokens;
      if (turn + 1 == n) break;
      session.history.insert(session.history.end(), end.tokens.begin(), end.tokens.end());
      const auto more = random_tokens(100, 100 + static_cast<std::uint64_t>(turn));
      session.history.insert(session.history.end(), more.begin(), more.end());
    }
    return session;
  }

  test::TemporaryDirectory directory_;
  std::string notices_;
  Engine engine_ = test::open_embedded();
  std::unique_ptr<Runner> runner_ = make_model_runner(engine_);
};

TEST_F(DiskCacheTest, ASessionGoesOnAfterARestart) {
  Session session;
  {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    session = turns(scheduler, 3);
    scheduler.drain(std::chrono::seconds(10));
  }
  EXPECT_EQ(files().size(), 3U) << "one file per turn, each with what the one before has not";
  const auto disk = open();
  Scheduler scheduler(*runner_, disk.get(), {});
  const GenerationEnd& again = run(scheduler, request_of(session.history, 100, 5));
  EXPECT_EQ(again.tokens, session.last);
  EXPECT_EQ(again.cached_tokens, static_cast<std::int64_t>(session.history.size()) - 101);
  EXPECT_EQ(scheduler.stats().disk_loads, 1);
  EXPECT_EQ(run(scheduler, request_of(session.history, 100, 5, "b")).cached_tokens, 0) << "another tenant";
  EXPECT_EQ(notices_, "");
}

TEST_F(DiskCacheTest, WindowRowsCanBeLeftOutAndComputedAgain) {
  Session session;
  {
    const auto disk = open(WindowStrategy::none);
    SchedulerOptions options;
    options.snapshot_tokens = 512;
    Scheduler scheduler(*runner_, disk.get(), options);
    session = {random_tokens(3000, 1), {}};
    session.last = run(scheduler, request_of(session.history, 50, 5)).tokens;
    scheduler.drain(std::chrono::seconds(10));
  }
  const auto disk = open(WindowStrategy::none);
  SchedulerOptions options;
  options.snapshot_tokens = 512;
  Scheduler scheduler(*runner_, disk.get(), options);
  const GenerationEnd& again = run(scheduler, request_of(session.history, 50, 5));
  EXPECT_EQ(again.tokens, session.last);
  const std::int64_t replayed =
      runner_->layout().window_rows * static_cast<std::int64_t>(runner_->layout().blocks.size());
  EXPECT_EQ(again.cached_tokens, (2560 - replayed) / kPageTokens * kPageTokens);
}

TEST_F(DiskCacheTest, FullWindowsRestoreAtEveryPage) {
  const auto prompt = random_tokens(1000, 1);
  {
    const auto disk = open(WindowStrategy::full);
    Scheduler scheduler(*runner_, disk.get(), {});
    run(scheduler, request_of(prompt, 1));
    scheduler.drain(std::chrono::seconds(10));
  }
  const auto disk = open(WindowStrategy::full);
  Scheduler scheduler(*runner_, disk.get(), {});
  std::vector<std::int32_t> other(prompt.begin(), prompt.begin() + 450);
  other.push_back(99);
  EXPECT_EQ(run(scheduler, request_of(other, 1)).cached_tokens, 384);
}

TEST_F(DiskCacheTest, DamagedFilesAreNoticedAndReadAgain) {
  Session session;
  {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    session = turns(scheduler, 2, 130, 10);
    scheduler.drain(std::chrono::seconds(10));
  }
  const auto names = files();
  ASSERT_EQ(names.size(), 2U);
  const auto keep = [&](const std::filesystem::path& name) {
    std::ifstream in(name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const auto put = [](const std::filesystem::path& name, std::string_view bytes) {
    std::ofstream(name, std::ios::binary | std::ios::trunc) << bytes;
  };
  const std::string originals[2] = {keep(names[0]), keep(names[1])};
  const auto check = [&](const std::string& what) {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    EXPECT_EQ(run(scheduler, request_of(session.history, 10, 5)).tokens, session.last) << what;
    scheduler.drain(std::chrono::seconds(10));
  };
  const auto restore = [&] {
    for (const auto& name : files()) std::filesystem::remove(name);
    put(names[0], originals[0]);
    put(names[1], originals[1]);
  };
  // A byte of every part of each file: header, tokens, table, fixed part, pages, the end.
  for (int file = 0; file < 2; ++file) {
    const std::string& original = originals[file];
    for (const std::size_t at :
         {std::size_t{3}, std::size_t{9}, std::size_t{20}, std::size_t{50}, std::size_t{61}, std::size_t{130},
          std::size_t{200}, original.size() / 8, original.size() / 2, original.size() - 1}) {
      restore();
      std::string damaged = original;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
      put(names[static_cast<std::size_t>(file)], damaged);
      check("byte " + std::to_string(at) + " of file " + std::to_string(file));
    }
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{159}, original.size() / 2, original.size() - 1}) {
      restore();
      put(names[static_cast<std::size_t>(file)], original.substr(0, size));
      check("cut to " + std::to_string(size));
    }
    restore();
    put(names[static_cast<std::size_t>(file)], original + "x");
    check("longer");
  }
  EXPECT_NE(notices_, "");
  restore();
  std::filesystem::remove(directory_.path() / "cache" / "index.sqlite");
  check("without an index");
  put(directory_.path() / "cache" / "index.sqlite",
      "this is no database, but it is long enough to be read as one");
  check("a broken index");
}

TEST_F(DiskCacheTest, FilesOfAnotherModelAreNotUsed) {
  const auto prompt = random_tokens(500, 1);
  {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    run(scheduler, request_of(prompt, 80));
    scheduler.drain(std::chrono::seconds(10));
  }
  DiskCacheOptions options;
  options.directory = directory_.path() / "cache";
  options.fingerprint = runner_->fingerprint() + 1;
  const auto disk = DiskCache::open(runner_->layout(), options);
  ASSERT_TRUE(disk.has_value());
  Scheduler scheduler(*runner_, disk->get(), {});
  EXPECT_EQ(run(scheduler, request_of(prompt, 1)).cached_tokens, 0);
}

TEST_F(DiskCacheTest, StaysWithinItsBudget) {
  const StateLayout& layout = runner_->layout();
  const std::int64_t budget = 3 * (layout.fixed_bytes + 6 * layout.page_bytes);
  const auto disk = open(WindowStrategy::periodic, budget);
  Scheduler scheduler(*runner_, disk.get(), {});
  for (std::uint64_t i = 0; i < 10; ++i) run(scheduler, request_of(random_tokens(500, i), 80, i));
  scheduler.drain(std::chrono::seconds(10));
  std::int64_t bytes = 0;
  for (const auto& name : files()) bytes += static_cast<std::int64_t>(std::filesystem::file_size(name));
  EXPECT_LE(bytes, budget);
  EXPECT_GT(bytes, budget / 3);
  EXPECT_EQ(disk->stats().bytes, bytes);
  EXPECT_GT(disk->stats().dropped, 0);
}

// SQLite opens a file whose first page is right, and finds the damage when it reads the rows.
TEST_F(DiskCacheTest, AnIndexThatIsBrokenInsideIsMadeAnew) {
  Session session;
  {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    session = turns(scheduler, 2);
    for (int i = 0; i < 300; ++i) disk->put_record({"ns", "key" + std::to_string(i), std::string(500, 'v')});
    scheduler.drain(std::chrono::seconds(10));
  }
  const std::filesystem::path index = directory_.path() / "cache/index.sqlite";
  std::string bytes;
  {
    std::ifstream in(index, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  ASSERT_GT(bytes.size(), 100'000U);
  std::fill(bytes.begin() + 8192, bytes.end(), '\x5a');
  std::ofstream(index, std::ios::binary | std::ios::trunc) << bytes;
  const auto disk = open();
  ASSERT_NE(disk, nullptr);
  EXPECT_NE(notices_.find("index.sqlite.broken"), std::string::npos) << notices_;
  EXPECT_TRUE(std::filesystem::exists(directory_.path() / "cache/index.sqlite.broken"));
  EXPECT_TRUE(disk->records().empty());
  Scheduler scheduler(*runner_, disk.get(), {});
  const GenerationEnd& again = run(scheduler, request_of(session.history, 100, 5));
  EXPECT_EQ(again.tokens, session.last);
  EXPECT_GT(again.cached_tokens, 500) << "the files speak for themselves";
}

// What cannot be read now may be readable again later: it stays, and so does what builds on it.
TEST_F(DiskCacheTest, WhatCannotBeReadIsNotThrownAway) {
  Session session;
  {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    session = turns(scheduler, 3);
    scheduler.drain(std::chrono::seconds(10));
  }
  std::filesystem::path root;
  for (const auto& name : files()) {
    const auto file = CacheFile::open(name);
    ASSERT_TRUE(file.has_value());
    if (file->header().parent == 0) root = name;
  }
  const std::filesystem::path aside = directory_.path() / "aside";
  std::filesystem::rename(root, aside);
  std::filesystem::create_directory(root);
  {
    const auto disk = open();
    EXPECT_NE(notices_.find("is left out: "), std::string::npos) << notices_;
    EXPECT_EQ(notices_.find("removed"), std::string::npos) << notices_;
    Scheduler scheduler(*runner_, disk.get(), {});
    EXPECT_EQ(run(scheduler, request_of(session.history, 100, 5)).tokens, session.last);
  }
  std::filesystem::remove(root);
  std::filesystem::rename(aside, root);
  const auto disk = open();
  Scheduler scheduler(*runner_, disk.get(), {});
  const GenerationEnd& again = run(scheduler, request_of(session.history, 100, 5));
  EXPECT_EQ(again.tokens, session.last);
  EXPECT_GE(again.cached_tokens, static_cast<std::int64_t>(session.history.size()) - 101);
}

TEST_F(DiskCacheTest, WhatBuildsOnALostFileGoesAndIsSaid) {
  {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    turns(scheduler, 3);
    scheduler.drain(std::chrono::seconds(10));
  }
  for (const auto& name : files()) {
    if (CacheFile::open(name)->header().parent == 0) std::filesystem::remove(name);
  }
  const auto disk = open();
  EXPECT_TRUE(files().empty());
  EXPECT_EQ(disk->stats().corrupt, 2);
  EXPECT_NE(notices_.find("what it builds on is gone"), std::string::npos) << notices_;
}

// A full disk, as the size that a file may have: it costs what would have been kept, is said once, and
// passes.
TEST_F(DiskCacheTest, AFullDiskIsSaidOnceAndCostsNoRequest) {
  const auto disk = open();
  Scheduler scheduler(*runner_, disk.get(), {});
  const std::vector<std::int32_t> first = run(scheduler, request_of(random_tokens(500, 0), 20)).tokens;
  disk->flush();
  const auto stored = disk->stats().stored;
  ASSERT_GT(stored, 0);
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit none{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &none), 0);
  for (std::uint64_t i = 1; i < 6; ++i)
    EXPECT_EQ(run(scheduler, request_of(random_tokens(500, i), 5)).tokens.size(), 5U);
  EXPECT_EQ(run(scheduler, request_of(random_tokens(500, 0), 20)).tokens, first);
  disk->flush();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(disk->stats().stored, stored);
  EXPECT_EQ(std::count(notices_.begin(), notices_.end(), '\n'), 1) << notices_;
  EXPECT_NE(notices_.find("cannot be written"), std::string::npos) << notices_;
  run(scheduler, request_of(random_tokens(500, 9), 5));
  disk->flush();
  EXPECT_GT(disk->stats().stored, stored);
  EXPECT_NE(notices_.find("writing works again"), std::string::npos) << notices_;
}

TEST_F(DiskCacheTest, OpensWhereNothingCanBeWritten) {
  Session session;
  {
    const auto disk = open();
    Scheduler scheduler(*runner_, disk.get(), {});
    session = turns(scheduler, 2);
    scheduler.drain(std::chrono::seconds(10));
  }
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit none{0, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &none), 0);
  const auto disk = open();
  EXPECT_NE(notices_.find("the index cannot be written"), std::string::npos) << notices_;
  {
    Scheduler scheduler(*runner_, disk.get(), {});
    const GenerationEnd& again = run(scheduler, request_of(session.history, 100, 5));
    EXPECT_EQ(again.tokens, session.last);
    EXPECT_GT(again.cached_tokens, 500) << "what lies there is used";
  }
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
}

TEST_F(DiskCacheTest, ADirectoryHasOneOwner) {
  auto disk = open();
  DiskCacheOptions options;
  options.directory = directory_.path() / "cache";
  const auto second = DiskCache::open(runner_->layout(), options);
  ASSERT_FALSE(second.has_value());
  EXPECT_NE(second.error().message().find("another process of hadal uses this directory"), std::string::npos);
  disk.reset();
  EXPECT_TRUE(DiskCache::open(runner_->layout(), options).has_value());
  options.directory = directory_.path() / "file";
  std::ofstream(options.directory) << "x";
  const auto file = DiskCache::open(runner_->layout(), options);
  ASSERT_FALSE(file.has_value());
  EXPECT_NE(file.error().message().find((directory_.path() / "file").string()), std::string::npos);
}

TEST_F(DiskCacheTest, RecordsComeBackInOrder) {
  {
    const auto disk = open();
    for (int i = 0; i < 5; ++i) disk->put_record({"ns", "key" + std::to_string(i), std::string("v\0x", 3)});
    disk->put_record({"ns", "key1", "newer"});
    disk->flush();
  }
  const auto disk = open();
  const auto records = disk->records();
  ASSERT_EQ(records.size(), 5U);
  EXPECT_EQ(records.front().key, "key0");
  EXPECT_EQ(records.front().value, std::string("v\0x", 3));
  EXPECT_EQ(records.back().key, "key1");
  EXPECT_EQ(records.back().value, "newer");
}

// More sessions than fit into memory: what was evicted comes back from disk, nothing is read twice.
TEST_F(DiskCacheTest, InterleavedSessionsReadNothingTwice) {
  const auto disk = open();
  const StateLayout& layout = runner_->layout();
  SchedulerOptions options;
  options.state_bytes = 8 * layout.fixed_bytes + 45 * layout.page_bytes;
  Scheduler scheduler(*runner_, disk.get(), options);
  std::vector<std::vector<std::int32_t>> sessions;
  for (std::uint64_t i = 0; i < 6; ++i) sessions.push_back(random_tokens(1000, i));
  for (int turn = 0; turn < 4; ++turn) {
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      auto& history = sessions[i];
      const GenerationEnd& end = run(scheduler, request_of(history, 40, i));
      if (turn > 0) {
        EXPECT_LE(end.prompt_tokens - end.cached_tokens, 101) << "session " << i << ", turn " << turn;
      }
      history.insert(history.end(), end.tokens.begin(), end.tokens.end());
      const auto more = random_tokens(60, 100 * i + static_cast<std::uint64_t>(turn));
      history.insert(history.end(), more.begin(), more.end());
    }
  }
  EXPECT_GT(scheduler.stats().disk_loads, 0);
  EXPECT_LE(scheduler.stats().state_bytes, options.state_bytes);
}

}  // namespace
}  // namespace hadal
