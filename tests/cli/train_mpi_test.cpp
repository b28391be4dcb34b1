// Several processes of hadal train under mpirun: the losses of one process, and what a lost one leaves.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_command.h"
#include "train/snapshot.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

using testing::HasSubstr;

class Mpi : public testing::Test {
 protected:
  void SetUp() override {
#ifndef HADAL_WITH_MPI
    GTEST_SKIP() << "built without MPI (HADAL_MPI=OFF)";
#else
    test::write_tiny_corpus(directory_.path() / "data");
#endif
  }
  std::string path(const std::string& name) const {
    return (directory_.path() / name).string();
  }
  std::string recipe(std::int64_t steps, const std::string& extra = "") const {
    std::ofstream(directory_.path() / "tiny.json") << test::tiny_recipe(directory_.path(), steps, extra);
    return path("tiny.json");
  }
  // The exit code, and what came out.
  CommandResult mpirun(int processes, const std::string& arguments) const {
    const std::string command =
        fmt::format("mpirun --allow-run-as-root --oversubscribe -n {} '{}' {} --threads 1 >'{}' 2>'{}'",
                    processes, HADAL_BINARY, arguments, path("out"), path("err"));
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of("out"), text_of("err")};
  }
  std::string text_of(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(path(name), std::ios::binary).rdbuf();
    return text.str();
  }
  std::vector<nlohmann::json> metrics(const std::string& run) const {
    std::vector<nlohmann::json> steps;
    std::ifstream lines(path(run) + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);) steps.push_back(nlohmann::json::parse(line));
    return steps;
  }

  test::RunDirectory directory_;
};

// Whether every process has all experts, or each its own.
class TrainMpi : public Mpi, public testing::WithParamInterface<bool> {
 protected:
  std::string recipe(std::int64_t steps, const std::string& extra = "") const {
    return Mpi::recipe(steps, extra + (GetParam() ? R"(, "expert_parallel": true)" : ""));
  }
};

// All three kinds of stages, the batch ramp, evaluations, 100 steps: the same bits. Not only to 1e-5, since
// what differs in the last place Newton-Schulz blows up, and in the router it flips a choice.
TEST_P(TrainMpi, RanksHaveTheLossesOfOneProcess) {
  const std::string parts = R"(, "gradient_parts": 2)";
  ASSERT_EQ(run_command(fmt::format("train {} --run {}", recipe(100, parts), path("one"))).exit_code, 0);
  const auto one = metrics("one");
  ASSERT_EQ(one.size(), 100U);
  const auto result = mpirun(2, fmt::format("train {} --run {}", recipe(100, parts), path("two")));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("in each of 2 processes"));
  const auto two = metrics("two");
  ASSERT_EQ(two.size(), one.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    for (const char* number :
         {"loss", "ce", "mtp", "balance", "index_kl", "gradient_norm", "load_max", "mixing_rows"})
      EXPECT_EQ(one[i][number], two[i][number]) << "step " << i << ", " << number;
    ASSERT_EQ(one[i].contains("validation"), two[i].contains("validation")) << i;
    if (one[i].contains("validation")) {
      EXPECT_NEAR(one[i]["validation"]["ce"].get<double>(), two[i]["validation"]["ce"].get<double>(), 1e-12);
    }
  }
  // A snapshot of two is whole: one process goes on from it.
  const auto exported = [&](const std::string& run) {
    const auto done =
        run_command(fmt::format("train export {} {} --format f32", path(run), path(run + "-model")));
    EXPECT_EQ(done.exit_code, 0) << done.err;
    return text_of(run + "-model/model.safetensors");
  };
  EXPECT_TRUE(exported("one") == exported("two"));
}

TEST_P(TrainMpi, AStoppedRunGoesOnBitForBit) {
  const auto train = [&](const std::string& run, const std::string& more) {
    const auto result = mpirun(2, fmt::format("train {} --run {} {}", recipe(20), path(run), more));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return text_of(fmt::format("{}/snapshots/step-{:08}.snap", run, 20));
  };
  const std::string whole = train("whole", "");
  std::filesystem::create_directories(path("half/snapshots"));
  std::filesystem::copy(path("whole/recipe.json"), path("half/recipe.json"));
  std::filesystem::copy(path("whole/metrics.jsonl"), path("half/metrics.jsonl"));
  std::filesystem::copy(path("whole/snapshots/step-00000018.snap"),
                        path("half/snapshots/step-00000018.snap"));
  EXPECT_TRUE(train("half", "--resume") == whole);
}

TEST_P(TrainMpi, ALostRankEndsTheRunAndTheLastSnapshotIsKept) {
  const std::string recipe_path = recipe(5000), run = path("run"), err = path("err");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::string command = fmt::format(
        "exec mpirun --allow-run-as-root --oversubscribe -n 2 sh -c 'echo $$ > "
        "{0}.pid.$OMPI_COMM_WORLD_RANK; exec {1} "
        "train {2} --run {0} --threads 1' 2>{3}",
        run, HADAL_BINARY, recipe_path, err);
    ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    std::_Exit(127);
  }
  for (int tries = 0; tries < 3000 && list_snapshots(run).empty(); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_FALSE(list_snapshots(run).empty());
  ::kill(static_cast<pid_t>(std::stoi(text_of("run.pid.1"))), SIGKILL);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 0);
  EXPECT_THAT(text_of("err"), HasSubstr("another process of the run does not answer"));
  EXPECT_THAT(text_of("err"), HasSubstr("signal 9"));  // mpirun names the lost one
  const std::int64_t last = list_snapshots(run).back();
  // Intact: it can be read, all checksums right.
  const auto exported =
      run_command(fmt::format("train export {} {} --step {} --format f32", run, path("model"), last));
  EXPECT_EQ(exported.exit_code, 0) << exported.err;
}

TEST_F(Mpi, WhatRanksCannotDoIsSaidOnce) {
  const auto fails = [&](int processes, const std::string& arguments, const std::string& expected) {
    const auto result = mpirun(processes, arguments);
    EXPECT_NE(result.exit_code, 0);
    const std::size_t at = result.err.find(expected);
    EXPECT_NE(at, std::string::npos) << result.err;
    EXPECT_EQ(result.err.find(expected, at + 1), std::string::npos) << result.err;
  };
  fails(2, "train /no/such/recipe.json", "/no/such/recipe.json");
  fails(4, fmt::format("train {} --run {}", recipe(9), path("a")),
        "4 processes, but step 0 has 2 sequences of 8 tokens");
  fails(2,
        fmt::format("train {} --run {}", recipe(9, R"(, "anticipatory_routing": {"mode": "always"})"),
                    path("b")),
        "which 2 processes cannot do");
  fails(2, fmt::format("train {} --run {}", recipe(9, R"(, "gradient_parts": 3)"), path("c")),
        "2 processes, but gradient_parts is 3");
}

INSTANTIATE_TEST_SUITE_P(Experts, TrainMpi, testing::Bool(),
                         [](const auto& of) { return std::string(of.param ? "OneEach" : "Everywhere"); });

}  // namespace
}  // namespace hadal
