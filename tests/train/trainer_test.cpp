// The promises of a run: the same weights on any number of threads and after any stop, a stop at what is not
// finite, and a way back from a spike.
#include "train/trainer.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <optional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "train/export.h"
#include "train/initial_weights.h"
#include "train/snapshot.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using test::RunDirectory;
using test::tiny_recipe;
using testing::HasSubstr;

constexpr std::int64_t kSteps = 9;

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_corpus(directory_.path() / "data"); }

  TrainingRecipe recipe(std::int64_t steps = kSteps, const std::string& extra = "") const {
    auto parsed = parse_recipe(tiny_recipe(directory_.path(), steps, extra), directory_.path());
    EXPECT_TRUE(parsed.has_value()) << parsed.error().message();
    return std::move(*parsed);
  }
  Result<Trainer> open(const TrainingRecipe& recipe, const std::string& run, ThreadPool& pool,
                       TrainerOptions options = {}) const {
    options.run = directory_.path() / run;
    return Trainer::create(recipe, std::move(options), pool);
  }
  // The weights at the end of an undisturbed run.
  std::vector<float> train(const TrainingRecipe& recipe, const std::string& run, int threads,
                           TrainerOptions options = {}) const {
    ThreadPool pool(threads);
    auto trainer = open(recipe, run, pool, std::move(options));
    EXPECT_TRUE(trainer.has_value()) << trainer.error().message();
    const Status status = trainer->run();
    EXPECT_TRUE(status.has_value()) << status.error().message();
    const auto values = trainer->weights().values();
    return {values.begin(), values.end()};
  }

  RunDirectory directory_;
};

TEST_F(TrainerTest, LossFallsAndThreadsDoNotShow) {
  std::vector<double> losses;
  double least = 1, most = 1;
  TrainerOptions options;
  options.on_step = [&](const StepMetrics& m) {
    if (m.plan.attention != StageAttention::indexer) losses.push_back(m.losses.ce);
    for (const float sum : {m.mixing.least_row, m.mixing.least_column})
      least = std::min(least, static_cast<double>(sum));
    for (const float sum : {m.mixing.most_row, m.mixing.most_column})
      most = std::max(most, static_cast<double>(sum));
  };
  const std::vector<float> one = train(recipe(30), "one", 1, options);
  const std::vector<float> two = train(recipe(30), "two", 2);
  EXPECT_EQ(one, two);
  EXPECT_LT(losses.back(), losses.front() - 0.3);
  EXPECT_GT(least, 1 - 1e-3);
  EXPECT_LT(most, 1 + 1e-3);
}

TEST_F(TrainerTest, AStopAndAResumeDoNotShow) {
  const std::vector<float> whole = train(recipe(), "whole", 2);
  for (std::int64_t stop_at : {1, 4, 5}) {
    const std::string run = fmt::format("stopped-{}", stop_at);
    {
      ThreadPool pool(2);
      std::int64_t done = 0;
      TrainerOptions options;
      options.on_step = [&](const StepMetrics& m) { done = m.plan.step + 1; };
      options.stop = [&] { return done == stop_at; };
      auto trainer = open(recipe(), run, pool, options);
      ASSERT_TRUE(trainer.has_value()) << trainer.error().message();
      ASSERT_TRUE(trainer->run().has_value());
      ASSERT_EQ(trainer->step(), stop_at);
    }
    TrainerOptions options;
    options.resume = true;
    EXPECT_EQ(train(recipe(), run, 1, options), whole) << stop_at;
    std::ifstream lines(directory_.path() / run / "metrics.jsonl");
    std::int64_t n = 0;
    for (std::string line; std::getline(lines, line); ++n)
      EXPECT_THAT(line, HasSubstr(fmt::format("\"step\":{},", n)));
    EXPECT_EQ(n, kSteps);
  }
}

// The process is killed in the middle of a step, as the machine's power may be.
TEST_F(TrainerTest, AKillDoesNotShow) {
  const std::vector<float> whole = train(recipe(), "whole", 1);
  for (const std::int64_t kill_at : {0, 3, 7}) {
    const std::string run = fmt::format("killed-{}", kill_at);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ThreadPool pool(1);
      TrainerOptions options;
      options.tamper = [&](std::int64_t step, Losses&, ParameterSet&) {
        if (step == kill_at) ::kill(::getpid(), SIGKILL);
      };
      auto trainer = open(recipe(), run, pool, options);
      if (trainer) (void)trainer->run();
      std::_Exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    TrainerOptions options;
    options.resume = true;
    EXPECT_EQ(train(recipe(), run, 2, options), whole) << kill_at;
  }
}

TEST_F(TrainerTest, WhatIsNotFiniteStopsTheRunAndIsNamed) {
  ThreadPool pool(2);
  TrainerOptions options;
  options.tamper = [](std::int64_t step, Losses&, ParameterSet& gradients) {
    if (step != 5) return;
    const Parameter* p = gradients.find("layers.1.attn.wq_a.weight");
    gradients[*p][3] = std::numeric_limits<float>::quiet_NaN();
  };
  auto trainer = open(recipe(kSteps, R"(, "bias_update_speed": 0.01)"), "gradient", pool, options);
  ASSERT_TRUE(trainer.has_value());
  Status status = trainer->run();
  ASSERT_FALSE(status.has_value());
  EXPECT_THAT(status.error().message(),
              HasSubstr("step 5: the gradient of layers.1.attn.wq_a.weight is not finite"));
  EXPECT_THAT(status.error().message(), HasSubstr("the snapshot of step 4 is kept"));
  EXPECT_EQ(list_snapshots(directory_.path() / "gradient").back(), 4);

  options.tamper = [](std::int64_t step, Losses& losses, ParameterSet&) {
    if (step == 1) losses.mtp = std::numeric_limits<double>::infinity();
  };
  trainer = open(recipe(), "loss", pool, options);
  ASSERT_TRUE(trainer.has_value());
  status = trainer->run();
  ASSERT_FALSE(status.has_value());
  EXPECT_THAT(status.error().message(), HasSubstr("step 1: the MTP loss is not finite"));
  EXPECT_THAT(status.error().message(), HasSubstr("there is no snapshot yet"));
}

// Without an epsilon AdamW divides nothing by nothing in the embedding of token 0, which the corpus does not
// have.
TEST_F(TrainerTest, WeightsThatAreNotFiniteMakeNoSnapshot) {
  ThreadPool pool(2);
  TrainingRecipe no_epsilon = recipe();
  no_epsilon.optimizer.epsilon = 0;
  no_epsilon.snapshot.every = 1;
  auto trainer = open(no_epsilon, "run", pool);
  ASSERT_TRUE(trainer.has_value());
  const Status status = trainer->run();
  ASSERT_FALSE(status.has_value());
  EXPECT_THAT(status.error().message(), HasSubstr("before step 1: the weight embed.weight is not finite"));
  EXPECT_THAT(list_snapshots(directory_.path() / "run"), testing::IsEmpty());
}

TEST_F(TrainerTest, ASpikeGoesBackAndAnticipatesRouting) {
  const std::string extra =
      R"(, "spike": {"rise": 2, "window": 3}, "anticipatory_routing": {"mode": "after_spike", "delay": 2, "steps": 2})";
  std::vector<std::int64_t> steps, anticipated;
  bool spiked = false;
  TrainerOptions options;
  options.tamper = [&](std::int64_t step, Losses& losses, ParameterSet&) {
    if (step == 9 && !spiked) {
      losses.ce += 5;
      spiked = true;
    }
  };
  options.on_step = [&](const StepMetrics& m) {
    steps.push_back(m.plan.step);
    if (m.anticipated) anticipated.push_back(m.plan.step);
  };
  train(recipe(12, extra), "spike", 2, options);
  EXPECT_THAT(steps, testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11));
  EXPECT_THAT(anticipated, testing::ElementsAre(8, 9, 10));
}

TEST_F(TrainerTest, AnticipatedRoutingSurvivesAStop) {
  const std::string extra = R"(, "anticipatory_routing": {"mode": "always", "delay": 2})";
  const std::vector<float> whole = train(recipe(kSteps, extra), "whole", 2);
  EXPECT_NE(whole, train(recipe(), "plain", 2));
  ThreadPool pool(2);
  std::int64_t done = 0;
  TrainerOptions options;
  options.on_step = [&](const StepMetrics& m) { done = m.plan.step + 1; };
  options.stop = [&] { return done == 7; };
  {
    auto trainer = open(recipe(kSteps, extra), "stopped", pool, options);
    ASSERT_TRUE(trainer.has_value() && trainer->run().has_value());
  }
  TrainerOptions again;
  again.resume = true;
  EXPECT_EQ(train(recipe(kSteps, extra), "stopped", 1, again), whole);
}

TEST_F(TrainerTest, QuantisationAwareFromItsStepOn) {
  const std::string extra = R"(, "fp4_from_step": 6)";
  const auto losses_of = [&](const TrainingRecipe& recipe, const std::string& run, int threads) {
    std::vector<double> losses;
    TrainerOptions options;
    options.on_step = [&](const StepMetrics& m) { losses.push_back(m.losses.ce); };
    train(recipe, run, threads, options);
    return losses;
  };
  const std::vector<double> plain = losses_of(recipe(), "plain", 2),
                            aware = losses_of(recipe(kSteps, extra), "aware", 2);
  for (std::size_t step = 0; step < kSteps; ++step) {
    EXPECT_EQ(plain[step] == aware[step], step < 6) << step;
    EXPECT_NEAR(plain[step], aware[step], 0.2) << step;
  }
  EXPECT_EQ(losses_of(recipe(kSteps, extra), "again", 1), aware);
}

// Each stage has its own length and YaRN: a stage that differs in YaRN alone goes another way from its first
// step on.
TEST_F(TrainerTest, AStageBringsItsYarn) {
  const auto losses_of = [&](double factor, const std::string& run) {
    TrainingRecipe changed = recipe();
    changed.stages[2].yarn = YarnScaling{factor, 8, 32, 1};
    std::vector<double> losses;
    TrainerOptions options;
    options.on_step = [&](const StepMetrics& m) { losses.push_back(m.losses.ce); };
    train(changed, run, 2, options);
    return losses;
  };
  const std::vector<double> two = losses_of(2, "two"), eight = losses_of(8, "eight");
  for (std::size_t step = 0; step < kSteps; ++step) EXPECT_EQ(two[step] == eight[step], step < 5) << step;
}

// The gradient in two parts is that in one, in another order of sums.
TEST_F(TrainerTest, PartsOfTheGradientAddUp) {
  const auto first_step = [&](std::int64_t parts_of_gradient, const std::string& run) {
    ParameterSet found(recipe().config);
    TrainerOptions options;
    options.tamper = [&](std::int64_t step, Losses&, ParameterSet& gradients) {
      if (step == 0) std::copy(gradients.values().begin(), gradients.values().end(), found.values().begin());
    };
    TrainingRecipe cut = recipe();
    cut.batch = {{0, 32}};
    cut.gradient_parts = parts_of_gradient;
    train(cut, run, 2, options);
    return found;
  };
  const ParameterSet whole = first_step(1, "whole"), parts = first_step(2, "parts");
  for (const Parameter& p : whole.parameters()) {
    const auto a = whole[p], b = parts[p];
    double size = 0, difference = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      size = std::max(size, std::fabs(double{a[i]}));
      difference = std::max(difference, std::fabs(double{a[i]} - double{b[i]}));
    }
    EXPECT_LE(difference, 1e-5 * size) << p.info.name;
  }
}

TEST_F(TrainerTest, AnotherRecipeOrAnotherTrainerIsRefused) {
  ThreadPool pool(1);
  TrainerOptions options;
  auto first = open(recipe(), "run", pool, options);
  ASSERT_TRUE(first.has_value());
  options.resume = true;
  auto second = open(recipe(), "run", pool, options);
  ASSERT_FALSE(second.has_value());
  EXPECT_THAT(second.error().message(), HasSubstr("another process trains here"));
  { const Trainer gone = std::move(*first); }
  auto changed = open(recipe(kSteps, R"(, "bias_update_speed": 0.5)"), "run", pool, options);
  ASSERT_FALSE(changed.has_value());
  EXPECT_THAT(changed.error().message(), HasSubstr("/bias_update_speed differs"));
  options.resume = false;
  auto again = open(recipe(), "run", pool, options);
  ASSERT_FALSE(again.has_value());
  EXPECT_THAT(again.error().message(), HasSubstr("--resume continues it"));
}

TEST_F(TrainerTest, ADamagedSnapshotIsPassedOver) {
  const std::vector<float> whole = train(recipe(), "run", 1);
  const fs::path run = directory_.path() / "run";
  ASSERT_THAT(list_snapshots(run), testing::ElementsAre(8, 9));
  {
    std::fstream file(snapshot_path(run, 9), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(20000);
    file.put('x').put('y').put('z');
  }
  std::string said;
  TrainerOptions options;
  options.resume = true;
  options.notice = [&](std::string_view text) { said += text; };
  EXPECT_EQ(train(recipe(), "run", 1, options), whole);
  EXPECT_THAT(said, HasSubstr("step-00000009.snap: the checksum of \"weights\" does not match"));
  for (const std::int64_t step : list_snapshots(run)) std::ofstream(snapshot_path(run, step)) << "nothing";
  ThreadPool pool(1);
  const auto none = open(recipe(), "run", pool, options);
  ASSERT_FALSE(none.has_value());
  EXPECT_THAT(none.error().message(), HasSubstr("no older snapshot is left"));
}

TEST_F(TrainerTest, AFullDiskLeavesTheSnapshotBefore) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);  // writes past the limit fail as on a full disk
    ThreadPool pool(1);
    TrainerOptions options;
    options.on_step = [&](const StepMetrics& m) {
      if (m.plan.step != 2) return;
      const rlimit limit{100'000, 100'000};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    };
    auto trainer = open(recipe(), "full", pool, options);
    const Status status = trainer->run();
    const bool right =
        !status && status.error().message().find("the snapshot of step 2 is intact") != std::string::npos;
    if (!status) std::fprintf(stderr, "%s\n", status.error().message().c_str());
    std::_Exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  TrainerOptions options;
  options.resume = true;
  EXPECT_EQ(train(recipe(), "full", 1, options), train(recipe(), "whole", 1));
}

TEST_F(TrainerTest, AnExportHoldsTheWeights) {
  train(recipe(), "run", 2);
  const auto trained = load_run(directory_.path() / "run");
  ASSERT_TRUE(trained.has_value()) << trained.error().message();
  EXPECT_EQ(trained->step, kSteps);
  TrainingRecipe published = recipe();
  published.config = *parse_config(test::tiny_model(128, "fp4"));
  ThreadPool pool(2);
  const ParameterSet wide = initial_weights(published, pool);
  const auto check = [&](const Config& config, const ParameterSet& weights, StorageFormat format,
                         double tolerance) {
    const fs::path out = directory_.path() / fmt::format("model-{}", static_cast<int>(format));
    const auto summary = export_checkpoint(config, weights, out, format, {}, {}, pool);
    ASSERT_TRUE(summary.has_value()) << summary.error().message();
    const auto model = Model::load(out);
    ASSERT_TRUE(model.has_value()) << model.error().message();
    const ParameterSet back = ParameterSet::from(*model, pool);
    for (const Parameter& p : weights.parameters()) {
      const auto want = weights[p], got = back[p];
      double error = 0, size = 0;
      for (std::size_t i = 0; i < want.size(); ++i) {
        error = std::max(error, std::fabs(static_cast<double>(want[i]) - static_cast<double>(got[i])));
        size = std::max(size, std::fabs(static_cast<double>(want[i])));
      }
      EXPECT_LE(error, tolerance * size) << p.info.name;
      if (p.info.role != Role::hash_table) continue;
      const auto ids = weights.table(p), got_ids = back.table(*back.find(p.info.name));
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), got_ids.begin(), got_ids.end())) << p.info.name;
    }
  };
  // Of the largest value: half the distance of two numbers there.
  check(trained->recipe.config, trained->weights, StorageFormat::f32, 0);
  check(trained->recipe.config, trained->weights, StorageFormat::bf16, 0x1p-8);
  // FP4: 5 steps up to the largest, 4 or 6.
  check(published.config, wide, StorageFormat::published, 0.2);
}

}  // namespace
}  // namespace hadal
