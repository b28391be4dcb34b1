// hadal train, data build and tokenizer train as a user at a shell meets them: from a text to a checkpoint,
// and what a terminal, Ctrl-C, a killed process and bad input make of a run.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>

#include "cli/run_command.h"
#include "train/snapshot.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

using testing::HasSubstr;
using testing::Not;

class TrainCommand : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_corpus(directory_.path() / "data"); }

  std::string path(const std::string& name) const { return (directory_.path() / name).string(); }
  std::string recipe(std::int64_t steps, const std::string& extra = "") const {
    std::ofstream(directory_.path() / "tiny.json") << test::tiny_recipe(directory_.path(), steps, extra);
    return path("tiny.json");
  }
  // A process of its own; its stderr on `terminal`, a pseudo-terminal, or on a file.
  pid_t start(std::int64_t steps, const std::string& run, int* terminal) const {
    const std::string recipe_path = recipe(steps), run_path = path(run), err = path(run + ".err");
    int master = -1, slave = -1;
    if (terminal != nullptr) {
      EXPECT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
      *terminal = master;
    }
    const pid_t child = ::fork();
    if (child == 0) {
      const int out = terminal != nullptr ? slave : ::open(err.c_str(), O_WRONLY | O_CREAT, 0644);
      ::dup2(out, STDERR_FILENO);
      ::execl(HADAL_BINARY, HADAL_BINARY, "train", recipe_path.c_str(), "--run", run_path.c_str(),
              "--threads", "1", nullptr);
      std::_Exit(127);
    }
    if (slave >= 0) ::close(slave);
    return child;
  }
  // Waits until the run has that many lines of metrics, however slow the machine, or its process has ended.
  void wait_for_steps(pid_t child, const std::string& run, std::int64_t steps) const {
    for (bool ended = false;;) {
      std::ifstream lines(path(run) + "/metrics.jsonl");
      std::int64_t n = 0;
      for (std::string line; std::getline(lines, line);) ++n;
      if (n >= steps) return;
      if (ended) {
        ADD_FAILURE() << "the run ended after " << n << " steps: " << bytes_of(run + ".err");
        return;
      }
      siginfo_t info{};
      ended = ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
              info.si_pid == child;
      if (!ended) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  std::string bytes_of(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(path(name), std::ios::binary).rdbuf();
    return text.str();
  }
  // Of the last snapshot, all of it.
  std::string last_snapshot(const std::string& run) const {
    const auto steps = list_snapshots(path(run));
    EXPECT_FALSE(steps.empty());
    return steps.empty() ? "" : bytes_of(fmt::format("{}/snapshots/step-{:08}.snap", run, steps.back()));
  }

  test::RunDirectory directory_;
};

TEST_F(TrainCommand, FromTextToCheckpoint) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += fmt::format("{} bottles of beer on the wall\n", 300 - i);
  std::ofstream(path("beer.txt")) << text;
  auto result = run_command(fmt::format("tokenizer train --bare --vocab-size 290 -o {} {}",
                                        path("tokenizer.json"), path("beer.txt")));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("290 ids"));
  result = run_command(fmt::format("data build -t {} --no-marks --held-out 0.2 -o {} {}",
                                   path("tokenizer.json"), path("beer"), path("beer.txt")));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("1 documents"));
  std::string model = test::tiny_model();
  model.replace(model.find("\"vocab_size\": 64"), 16, "\"vocab_size\": 290");
  std::ofstream(path("beer.json")) << fmt::format(
      R"({{"name": "beer", "model": {{"config": {}}}, "tokenizer": "tokenizer.json",
          "data": {{"train": [{{"path": "beer"}}], "validation": "beer/held_out"}}, "steps": 6,
          "batch": [{{"from_step": 0, "tokens": 64}}], "stages": [{{"from_step": 0, "length": 32}}]}})",
      model);
  result = run_command(fmt::format("train {} --run {}", path("beer.json"), path("run")));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("step 6: held out: ce "));
  EXPECT_THAT(result.err, Not(HasSubstr("\r"))) << "no bar where stderr is not a terminal";
  result = run_command(fmt::format("train report {}", path("run")));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(bytes_of("run/report.html"), HasSubstr("<svg"));
  for (const char* format : {"bf16", "f32"}) {
    result = run_command(fmt::format("train export {} {} --format {}", path("run"), path(format), format));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    result = run_command(fmt::format("run -m {} --raw -p 'beer on' -n 5 --temp 0", path(format)));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out, "");
  }
}

TEST_F(TrainCommand, CtrlCTakesASnapshotAndResumeGoesOnBitForBit) {
  ASSERT_EQ(run_command(fmt::format("train {} --run {}", recipe(24), path("whole"))).exit_code, 0);
  const pid_t child = start(24, "stopped", nullptr);
  wait_for_steps(child, "stopped", 3);
  ::kill(child, SIGINT);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_THAT(bytes_of("stopped.err"), HasSubstr("--resume goes on from there"));
  EXPECT_THAT(bytes_of("stopped.err"), Not(HasSubstr("ETA")));
  EXPECT_LT(list_snapshots(path("stopped")).back(), 24);
  ASSERT_EQ(run_command(fmt::format("train {} --run {} --resume", recipe(24), path("stopped"))).exit_code, 0);
  EXPECT_TRUE(last_snapshot("stopped") == last_snapshot("whole"));
}

// Killed when it pleases the scheduler, resumed, until it is through.
TEST_F(TrainCommand, KillsAtRandomMomentsDoNotShow) {
  ASSERT_EQ(run_command(fmt::format("train {} --run {}", recipe(16), path("whole"))).exit_code, 0);
  const pid_t child = start(16, "killed", nullptr);
  wait_for_steps(
      child, "killed",
      1 + static_cast<std::int64_t>(std::chrono::steady_clock::now().time_since_epoch().count() / 1000 % 10));
  ::kill(child, SIGKILL);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(run_command(fmt::format("train {} --run {} --resume --threads 2", recipe(16), path("killed")))
                .exit_code,
            0);
  EXPECT_TRUE(last_snapshot("killed") == last_snapshot("whole"));
}

TEST_F(TrainCommand, ATerminalSeesABarWithTheTimeLeft) {
  int terminal = -1;
  const pid_t child = start(20, "bar", &terminal);
  std::string seen;
  char part[4096];
  for (ssize_t n = 0; (n = ::read(terminal, part, sizeof(part))) > 0;)
    seen.append(part, static_cast<std::size_t>(n));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ::close(terminal);
  EXPECT_THAT(seen, HasSubstr("/20 ["));
  EXPECT_THAT(seen, HasSubstr("ETA "));
  EXPECT_THAT(seen, HasSubstr("tokens/s"));
}

TEST_F(TrainCommand, BadInputGivesOneLineAndOne) {
  const auto fails = [](const std::string& arguments, const std::string& expected) {
    const auto result = run_command(arguments);
    EXPECT_EQ(result.exit_code, 1) << arguments;
    EXPECT_THAT(result.err, HasSubstr(expected)) << arguments;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.out, "");
  };
  fails("train /no/such/recipe.json", "/no/such/recipe.json");
  fails(fmt::format("train {} --run {}", recipe(30, R"(, "sead": 1)"), path("a")),
        "tiny.json: sead is not a field");
  fails("train export /no/such/run /tmp/x", "/no/such/run");
  fails("train report /no/such/run", "/no/such/run");
  std::ofstream(path("empty.txt"));
  fails(fmt::format("data build -t {} -o {} {}", std::string(HADAL_TEST_DATA) + "/../../models/default",
                    path("out"), path("empty.txt")),
        "empty.txt: empty");
  ASSERT_EQ(run_command(fmt::format("train {} --run {}", recipe(9), path("run"))).exit_code, 0);
  fails(fmt::format("train {} --run {}", recipe(9), path("run")), "--resume continues it");
  fails(fmt::format("train {} --run {} --resume", recipe(10), path("run")), "another recipe: /steps differs");
  fails(fmt::format("train export {} {} --step 5", path("run"), path("x")),
        "no snapshot of step 5; there are: 8, 9");
  EXPECT_EQ(run_command("train").exit_code, 2);
  EXPECT_EQ(run_command("train a.json --threads -1").exit_code, 2);
}

}  // namespace
}  // namespace hadal
