// Routed experts spread over ranks: the bits of one process, less memory, and snapshots that any number of
// ranks goes on from. The ranks are threads here; tests/cli/train_mpi_test.cpp has processes.
#include <fstream>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/ownership.h"
#include "train/thread_ranks.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr std::int64_t kSteps = 6;

class ExpertParallelTest : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_corpus(directory_.path() / "data"); }

  // Every part of a step has 2 sequences of 8 tokens, then 4, then 2 of 16: with micro-batches of 16 tokens
  // one, then two.
  TrainingRecipe recipe(std::int64_t parts, std::int64_t micro_batch = 16) const {
    const std::string extra = fmt::format(R"(, "expert_parallel": true, "gradient_parts": {})", parts);
    auto parsed = parse_recipe(test::tiny_recipe(directory_.path(), kSteps, extra), directory_.path());
    EXPECT_TRUE(parsed.has_value()) << parsed.error().message();
    parsed->micro_batch_tokens = micro_batch;
    for (BatchRamp& batch : parsed->batch) batch.tokens *= parts;
    return std::move(*parsed);
  }
  std::string snapshot(const std::string& run, std::int64_t step) const {
    std::ostringstream bytes;
    bytes << std::ifstream(directory_.path() / run / fmt::format("snapshots/step-{:08}.snap", step),
                           std::ios::binary)
                 .rdbuf();
    EXPECT_FALSE(bytes.str().empty()) << run << ", step " << step;
    return bytes.str();
  }
  // The error; empty: none.
  std::string train(const TrainingRecipe& recipe, const std::string& run, int ranks, bool resume = false,
                    const TrainerOptions& first_options = {}) const {
    std::string error;
    test::ThreadRanks(ranks).run([&](Communicator& communicator) {
      ThreadPool pool(1);
      TrainerOptions options;
      if (communicator.rank() == 0) options = first_options;
      options.run = directory_.path() / run;
      options.resume = resume;
      options.communicator = &communicator;
      auto trainer = Trainer::create(recipe, std::move(options), pool);
      Status status = agree(communicator, trainer ? Status() : tl::unexpected(trainer.error()));
      if (status) status = trainer->run();
      if (!status && communicator.rank() == 0) error = status.error().message();
    });
    return error;
  }
  // A run that the snapshot of this step is all that is left of.
  void leave_snapshot(const std::string& from, const std::string& to, std::int64_t step) const {
    const fs::path name = fmt::format("snapshots/step-{:08}.snap", step);
    fs::create_directories(directory_.path() / to / "snapshots");
    for (const fs::path& file : {fs::path("recipe.json"), fs::path("metrics.jsonl"), name})
      fs::copy(directory_.path() / from / file, directory_.path() / to / file);
  }

  test::RunDirectory directory_;
};

TEST_F(ExpertParallelTest, RanksHaveTheBitsOfOneProcess) {
  // The whole of a part at once, and in micro-batches.
  for (const auto& [ranks, micro_batch] : {std::pair(2, 0), std::pair(2, 16), std::pair(3, 16)}) {
    const TrainingRecipe of_ranks = recipe(ranks, micro_batch);
    const std::string one = fmt::format("one-{}-{}", ranks, micro_batch),
                      many = fmt::format("many-{}-{}", ranks, micro_batch);
    ASSERT_EQ(train(of_ranks, one, 1), "");
    ASSERT_EQ(train(of_ranks, many, ranks), "");
    EXPECT_TRUE(snapshot(one, kSteps) == snapshot(many, kSteps)) << ranks << ", " << micro_batch;
  }
}

TEST_F(ExpertParallelTest, AdamwAndFp4HaveThemToo) {
  TrainingRecipe r = recipe(2);
  r.optimizer.kind = OptimizerKind::adamw;
  r.fp4_from_step = kSteps / 2;
  ASSERT_EQ(train(r, "one", 1), "");
  ASSERT_EQ(train(r, "many", 2), "");
  EXPECT_TRUE(snapshot("one", kSteps) == snapshot("many", kSteps));
}

TEST_F(ExpertParallelTest, AnyNumberOfRanksGoesOn) {
  const TrainingRecipe r = recipe(2);
  ASSERT_EQ(train(r, "whole", 2), "");
  leave_snapshot("whole", "one", kSteps - 2);
  ASSERT_EQ(train(r, "one", 1, true), "");
  EXPECT_TRUE(snapshot("whole", kSteps) == snapshot("one", kSteps));
  leave_snapshot("whole", "two", kSteps - 2);
  ASSERT_EQ(train(r, "two", 2, true), "");
  EXPECT_TRUE(snapshot("whole", kSteps) == snapshot("two", kSteps));
}

TEST_F(ExpertParallelTest, ARankHoldsItsShare) {
  const Config config = recipe(2).config;
  ThreadPool pool(1);
  const ParameterSet whole(config);
  std::int64_t of_experts = 0;
  for (const Parameter& p : whole.parameters())
    if (p.info.role == Role::expert) of_experts += p.size;
  const OptimizerOptions options;
  const Optimizer optimizer(config, options, pool);
  test::ThreadRanks(3).run([&](Communicator& ranks) {
    const ParameterSet part(config, {ranks.rank(), ranks.size(), config.n_routed_experts});
    // Four experts on three ranks: two on the first.
    EXPECT_EQ(whole.held() - part.held(), of_experts / 4 * (ranks.rank() == 0 ? 2 : 3));
    const Ownership owned = Ownership::of(part, optimizer, ranks);
    std::int64_t replicated = 0, spread = 0;
    for (const Shard& s : owned.replicated) replicated += s.size;
    for (const Shard& s : owned.spread) spread += s.size;
    EXPECT_EQ(spread, of_experts);
    std::int64_t all = 0;
    for (const Parameter& p : part.parameters()) {
      all += p.size;
      const auto i = static_cast<std::size_t>(&p - part.parameters().data());
      EXPECT_TRUE(!owned.mine[i] || part.placement().holds(p.info)) << p.info.name;
    }
    EXPECT_EQ(replicated + spread, all);
    // Every parameter is someone's.
    std::vector<std::byte> mine;
    for (const bool is : owned.mine) mine.push_back(is ? std::byte{1} : std::byte{0});
    const auto claims = ranks.gather_bytes(mine);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      int owners = 0;
      for (const auto& rank : claims) owners += std::to_integer<int>(rank[i]);
      EXPECT_EQ(owners, 1) << part.parameters()[i].info.name;
    }
  });
}

// The others go on sending what the first one cannot write any more.
TEST_F(ExpertParallelTest, AFailedSnapshotEndsAllRanks) {
  const fs::path snapshots = directory_.path() / "run/snapshots";
  TrainerOptions options;
  options.on_step = [&](const StepMetrics& m) {
    if (m.plan.step != 2) return;
    fs::rename(snapshots, directory_.path() / "run/moved");
    std::ofstream(snapshots) << "no directory";
  };
  EXPECT_THAT(train(recipe(2), "run", 2, false, options), HasSubstr("step-00000004.snap: cannot create"));
  fs::remove(snapshots);
  fs::rename(directory_.path() / "run/moved", snapshots);
  ASSERT_EQ(train(recipe(2), "run", 2, true), "");
  ASSERT_EQ(train(recipe(2), "whole", 2), "");
  EXPECT_TRUE(snapshot("run", kSteps) == snapshot("whole", kSteps));
}

TEST_F(ExpertParallelTest, SaysWhatItCannotDo) {
  TrainingRecipe odd = recipe(2);
  odd.batch[0].tokens = 24;
  EXPECT_THAT(
      train(odd, "odd", 2),
      HasSubstr("expert_parallel over 2 processes, but step 0 has 3 sequences of 8 tokens, which they "
                "cannot share evenly"));
  EXPECT_THAT(train(odd, "odd", 1), HasSubstr("expert_parallel over 2 gradient_parts"));
  EXPECT_THAT(train(recipe(5), "many", 5),
              HasSubstr("5 processes, but expert_parallel has 4 routed experts to deal out"));
}

}  // namespace
}  // namespace hadal
