// Whose tokens a step takes, on a machine whose steps cost what the test says, by a clock that they move on.
#include <future>

#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"

namespace hadal {
namespace {

using test::request_of;
using test::submit;

struct Step {
  double seconds = 0;
  std::map<std::int32_t, std::int64_t> counts;  // by the first token of the sequence
};

// A step takes `fixed` seconds, `decode` more for each sequence that reads one token, and `prompt` for each
// token of the others. What is said does not matter: it is token 0 for ever.
class Machine final : public Runner {
 public:
  Machine(const StateLayout& layout, double fixed, double decode, double prompt)
      : layout_(layout), fixed_(fixed), decode_(decode), prompt_(prompt), logits_(256 * 8) {}
  const StateLayout& layout() const override { return layout_; }
  std::int64_t vocab_size() const override { return 8; }
  std::int64_t context() const override { return 1 << 20; }
  std::uint64_t fingerprint() const override { return 1; }
  Result<std::span<const float>> forward(std::span<const RunItem> items) override {
    Step step;
    step.seconds = fixed_;
    for (const RunItem& item : items) {
      item.state->prepare_append(item.count);
      item.state->advance(item.count);
      step.counts[item.history.front()] += item.count;
      step.seconds += item.count == 1 ? decode_ : prompt_ * static_cast<double>(item.count);
    }
    nanoseconds_ += static_cast<std::int64_t>(1e9 * step.seconds);
    steps.push_back(std::move(step));
    return std::span<const float>(logits_);
  }

  SchedulerOptions options(std::int64_t max_running = 64) {
    SchedulerOptions options;
    options.max_running = max_running;
    options.prefix_cache = false;
    options.now = [this] {
      return SchedulerClock::time_point(std::chrono::nanoseconds(nanoseconds_.load()));
    };
    return options;
  }
  std::vector<Step> steps;  // of the scheduler's thread, to be read when everything has ended

 private:
  const StateLayout& layout_;
  double fixed_, decode_, prompt_;
  std::vector<float> logits_;
  std::atomic<std::int64_t> nanoseconds_{1};
};

class Scheduling : public testing::Test {
 protected:
  static void SetUpTestSuite() { engine_ = new Engine(test::open_embedded(1)); }
  static void TearDownTestSuite() { delete std::exchange(engine_, nullptr); }
  static Machine machine(double fixed, double decode, double prompt) {
    static const std::unique_ptr<Runner> model = make_model_runner(*engine_);
    return {model->layout(), fixed, decode, prompt};
  }
  static Engine* engine_;
};
Engine* Scheduling::engine_ = nullptr;

std::vector<std::int32_t> prompt_of(std::int32_t name, std::size_t tokens) {
  return std::vector<std::int32_t>(tokens, name);
}

// Submits all in one go: the first request holds the scheduler in its first token until they are there.
class Gate {
 public:
  explicit Gate(Scheduler& scheduler, GenerationRequest first) {
    listener = std::make_shared<test::Listener>();
    listener->on_token = [this](std::size_t n) {
      if (n == 1) opened_.get_future().wait();
    };
    submit(scheduler, std::move(first), listener);
  }
  void open() { opened_.set_value(); }
  std::shared_ptr<test::Listener> listener;

 private:
  std::promise<void> opened_;
};

// The promise: beside a prompt of 100K tokens a running stream waits for a token at most twice as long as
// without it. Held on machines where the weights are what costs, where the sequences are, and where the
// prompt is.
TEST_F(Scheduling, ALongPromptDoesNotStallARunningStream) {
  for (const auto& [fixed, decode, prompt] :
       {std::tuple(0.010, 0.0005, 0.0001), std::tuple(0.001, 0.01, 0.002), std::tuple(0.005, 0.0, 0.001)}) {
    Machine costs = machine(fixed, decode, prompt);
    {
      Scheduler scheduler(costs, nullptr, costs.options());
      Gate gate(scheduler, request_of(prompt_of(1, 3), 1000));
      const auto reading = submit(scheduler, request_of(prompt_of(2, 100'000), 1));
      gate.open();
      gate.listener->wait();
      EXPECT_GE(scheduler.stats().prefill_budget, 4);
      reading.ticket->cancel();
      reading.listener->wait();  // cancelled, or by now read to the end
    }
    std::int64_t read = 0;
    int beside = 0;
    for (const Step& step : costs.steps) {
      if (!step.counts.contains(1) || !step.counts.contains(2)) continue;
      ++beside;
      read += step.counts.at(2);
    }
    const double alone = fixed + decode;
    EXPECT_GE(beside, 900);
    // The first chunks are guesses, of 32 tokens and then by what those took; after them it holds.
    double later = 0;
    int seen = 0;
    for (const Step& step : costs.steps) {
      if (step.counts.contains(1) && step.counts.contains(2) && ++seen > 8)
        later = std::max(later, step.seconds);
    }
    EXPECT_LE(later, 2 * alone) << fixed << ' ' << decode << ' ' << prompt;
    // And the prompt gets what that leaves: four fifths of a step, or the least chunk.
    const double possible = std::max(0.8 * alone / prompt, 4.0) * beside;
    EXPECT_GE(static_cast<double>(read), 0.9 * possible) << fixed << ' ' << decode << ' ' << prompt;
  }
}

// Sixty-four that start together: those that are through with their prompts do not wait for the speed of one
// alone, so the others get to their first tokens in time.
TEST_F(Scheduling, ManyThatStartTogetherAreReadSoon) {
  Machine costs = machine(0.010, 0.0005, 0.0001);
  {
    Scheduler scheduler(costs, nullptr, costs.options());
    Gate gate(scheduler, request_of(prompt_of(1, 3), 1));
    std::vector<test::Submitted> all;
    for (int i = 0; i < 64; ++i) all.push_back(submit(scheduler, request_of(prompt_of(2, 500), 100)));
    gate.open();
    for (const auto& one : all) one.listener->wait();
  }
  double seconds = 0, work = 0;
  for (const Step& step : costs.steps) seconds += step.seconds;
  work = 64 * 500 * 0.0001 + 100 * (0.010 + 64 * 0.0005);  // all read at once, then all written at once
  EXPECT_LE(seconds, 2 * work);
}

// Of a step's prompt tokens the first in turn gets half; the other half goes to those with the least left.
TEST_F(Scheduling, AShortPromptPassesALongOneThatGoesOn) {
  Machine costs = machine(0.010, 0.0005, 0.0001);
  std::shared_ptr<test::Listener> long_one, short_one;
  {
    Scheduler scheduler(costs, nullptr, costs.options());
    Gate gate(scheduler, request_of(prompt_of(1, 3), 4000));
    long_one = submit(scheduler, request_of(prompt_of(2, 20'000), 1)).listener;
    const auto middle = submit(scheduler, request_of(prompt_of(3, 10'000), 1)).listener;
    short_one = submit(scheduler, request_of(prompt_of(4, 200), 1)).listener;
    gate.open();
    const auto end_of_short = short_one->wait().ended, end_of_middle = middle->wait().ended,
               end_of_long = long_one->wait().ended;
    EXPECT_LT(end_of_short, end_of_middle);
    EXPECT_LT(end_of_middle, end_of_long);
  }
  for (const Step& step : costs.steps) {
    if (!step.counts.contains(2) || !(step.counts.contains(3) || step.counts.contains(4))) continue;
    std::int64_t others = 0;
    for (const std::int32_t name : {3, 4}) others += step.counts.contains(name) ? step.counts.at(name) : 0;
    EXPECT_LE(others, step.counts.at(2)) << "the first in turn has at least half";
  }
}

// Two tenants who read get the same, however many requests each has.
TEST_F(Scheduling, TenantsShareTheStep) {
  Machine costs = machine(0.010, 0.0005, 0.0001);
  {
    Scheduler scheduler(costs, nullptr, costs.options());
    Gate gate(scheduler, request_of(prompt_of(1, 3), 4000, 1, "c"));
    std::vector<test::Submitted> all;
    for (int i = 0; i < 5; ++i) all.push_back(submit(scheduler, request_of(prompt_of(2, 20'000), 1, 1, "a")));
    const auto single = submit(scheduler, request_of(prompt_of(3, 20'000), 1, 1, "b"));
    gate.open();
    single.listener->wait();
    for (const auto& one : all) one.ticket->cancel();
    for (const auto& one : all) one.listener->wait();
  }
  std::int64_t many = 0, one = 0;
  for (const Step& step : costs.steps) {
    if (one < 20'000 && step.counts.contains(2)) many += step.counts.at(2);
    if (step.counts.contains(3)) one += step.counts.at(3);
  }
  EXPECT_EQ(one, 20'000);
  EXPECT_NEAR(static_cast<double>(many), 20'000, 1'000);
}

}  // namespace
}  // namespace hadal
