// The scheduler on the embedded model: what a request gets is the same in any company and after any detour of
// its state, and the company gets its turns.
#include <algorithm>
#include <future>

#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"

namespace hadal {
namespace {

using test::Listener;
using test::random_tokens;
using test::request_of;
using test::run;
using test::submit;

class SchedulerTest : public testing::Test {
 protected:
  Engine engine_ = test::open_embedded();
  std::unique_ptr<Runner> runner_ = make_model_runner(engine_);

  // What the engine says by itself.
  std::vector<std::int32_t> alone(const std::vector<std::int32_t>& prompt, std::int64_t max_tokens,
                                  std::uint64_t seed) {
    Sequence sequence = engine_.start();
    GenerationOptions options;
    options.max_tokens = max_tokens;
    options.sampling.seed = seed;
    auto generation = engine_.generate(sequence, prompt, options);
    EXPECT_TRUE(generation.has_value());
    return generation->tokens;
  }
};

TEST_F(SchedulerTest, OutputIsTheSameInAnyCompany) {
  constexpr std::size_t kRequests = 9;
  std::vector<std::vector<std::int32_t>> expected;
  for (std::size_t i = 0; i < kRequests; ++i)
    expected.push_back(alone(random_tokens(1 + 71 * i, i), 16 + static_cast<std::int64_t>(i), i));
  for (const std::int64_t chunk : {16, 512}) {
    SchedulerOptions options;
    options.max_running = 8;
    options.chunk_tokens = chunk;
    Scheduler scheduler(*runner_, nullptr, options);
    std::vector<test::Submitted> all;
    for (std::size_t i = 0; i < kRequests; ++i) {
      all.push_back(
          submit(scheduler, request_of(random_tokens(1 + 71 * i, i), 16 + static_cast<std::int64_t>(i), i,
                                       i % 2 == 0 ? "a" : "b")));
    }
    for (std::size_t i = 0; i < kRequests; ++i) {
      EXPECT_EQ(all[i].listener->wait().tokens, expected[i]) << "request " << i << ", chunk " << chunk;
      EXPECT_EQ(all[i].listener->wait().finish, FinishReason::length);
    }
    const SchedulerStats stats = scheduler.stats();
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_GT(stats.step_tokens, 4 * stats.steps) << "requests ran one after another";
  }
}

TEST_F(SchedulerTest, ALaterTurnReadsOnlyWhatIsNew) {
  Scheduler scheduler(*runner_, nullptr, {});
  std::vector<std::int32_t> history = random_tokens(700, 3);
  for (int turn = 0; turn < 4; ++turn) {
    const std::vector<std::int32_t> expected = alone(history, 30, 5);
    const GenerationEnd& end = run(scheduler, request_of(history, 30, 5));
    EXPECT_EQ(end.tokens, expected) << "turn " << turn;
    if (turn > 0) {
      EXPECT_EQ(end.cached_tokens, end.prompt_tokens - 51)
          << "all but the last token sampled and what was added";
    }
    history.insert(history.end(), end.tokens.begin(), end.tokens.end());
    const auto more = random_tokens(50, 100 + static_cast<std::uint64_t>(turn));
    history.insert(history.end(), more.begin(), more.end());
  }
  // Another tenant's prompt is the same and gains nothing from it.
  EXPECT_EQ(run(scheduler, request_of(history, 1, 5, "b")).cached_tokens, 0);
}

TEST_F(SchedulerTest, SnapshotsLieAtTheBoundariesAskedFor) {
  SchedulerOptions options;
  options.snapshot_tokens = 512;
  Scheduler scheduler(*runner_, nullptr, options);
  const std::vector<std::int32_t> shared = random_tokens(1300, 8);
  GenerationRequest first = request_of(shared, 2);
  first.boundaries = {101, 333};
  run(scheduler, std::move(first));
  const auto cached_after = [&](std::size_t length) {
    std::vector<std::int32_t> prompt(shared.begin(), shared.begin() + static_cast<std::ptrdiff_t>(length));
    const auto other = random_tokens(40, 1000 + length);
    prompt.insert(prompt.end(), other.begin(), other.end());
    const std::vector<std::int32_t> expected = alone(prompt, 8, 2);
    const GenerationEnd& end = run(scheduler, request_of(prompt, 8, 2));
    EXPECT_EQ(end.tokens, expected) << "rewound from " << length;
    return end.cached_tokens;
  };
  EXPECT_EQ(cached_after(90), 0);
  EXPECT_EQ(cached_after(200), 101);
  EXPECT_EQ(cached_after(400), 333);
  EXPECT_EQ(cached_after(600), 512);
  EXPECT_EQ(cached_after(1299), 1024);
}

TEST_F(SchedulerTest, PreemptionLosesNothing) {
  std::vector<std::vector<std::int32_t>> expected;
  for (std::uint64_t i = 0; i < 4; ++i) expected.push_back(alone(random_tokens(200, i), 300, i));
  SchedulerOptions options;
  options.state_bytes = 4 * runner_->layout().fixed_bytes + 13 * runner_->layout().page_bytes;
  Scheduler scheduler(*runner_, nullptr, options);
  std::vector<test::Submitted> all;
  for (std::uint64_t i = 0; i < 4; ++i)
    all.push_back(submit(scheduler, request_of(random_tokens(200, i), 300, i)));
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i].listener->wait().tokens, expected[i]);
  EXPECT_GT(scheduler.stats().preemptions, 0);
  EXPECT_LE(scheduler.stats().state_bytes, options.state_bytes);
}

TEST_F(SchedulerTest, StopsAndCancels) {
  Scheduler scheduler(*runner_, nullptr, {});
  const auto prompt = random_tokens(50, 1);
  const auto whole = alone(prompt, 40, 1);

  GenerationRequest by_token = request_of(prompt, 40);
  by_token.stop_tokens = {whole[10]};
  const GenerationEnd& stopped = run(scheduler, std::move(by_token));
  EXPECT_EQ(stopped.finish, FinishReason::stop);
  EXPECT_EQ(stopped.stop_token, whole[10]);
  const auto first = std::find(whole.begin(), whole.end(), whole[10]);
  EXPECT_EQ(stopped.tokens, std::vector<std::int32_t>(whole.begin(), first));

  auto listener = std::make_shared<Listener>();
  listener->stop_after = 5;
  submit(scheduler, request_of(prompt, 40), listener);
  EXPECT_EQ(listener->wait().tokens.size(), 5U);
  EXPECT_EQ(listener->wait().finish, FinishReason::stop);

  std::promise<void> begun;
  auto writes = std::make_shared<Listener>();
  writes->on_token = [&](std::size_t n) {
    if (n == 20) begun.set_value();
  };
  auto endless = submit(scheduler, request_of(prompt, 1'000'000), writes);
  auto long_prompt = submit(scheduler, request_of(random_tokens(200'000, 2), 1));
  begun.get_future().wait();
  endless.ticket->cancel();
  long_prompt.ticket->cancel();
  EXPECT_EQ(endless.listener->wait().finish, FinishReason::cancelled);
  EXPECT_EQ(long_prompt.listener->wait().finish, FinishReason::cancelled);
  EXPECT_LT(scheduler.stats().prompt_tokens, 200'000) << "a prompt was read to the end";
}

TEST_F(SchedulerTest, RefusesWhatIsTooMuch) {
  SchedulerOptions options;
  options.max_running = 1;
  options.max_waiting = 2;
  options.max_per_tenant = 2;
  options.context = 100;
  Scheduler scheduler(*runner_, nullptr, options);
  const auto refused = [&](GenerationRequest request) {
    request.listener = std::make_shared<Listener>();
    const auto ticket = scheduler.submit(std::move(request));
    return ticket ? std::optional<Refusal::Kind>() : ticket.error().kind;
  };
  EXPECT_EQ(refused(request_of(random_tokens(101, 1), 1)), Refusal::Kind::too_long);
  EXPECT_EQ(refused(request_of({}, 1)), Refusal::Kind::invalid);
  EXPECT_EQ(refused(request_of({1 << 20}, 1)), Refusal::Kind::invalid);
  EXPECT_EQ(refused(request_of({-1}, 1)), Refusal::Kind::invalid);
  std::promise<void> gate;  // the first request hangs in its first token, so that the others wait
  auto holding = std::make_shared<Listener>();
  holding->on_token = [&](std::size_t n) {
    if (n == 1) gate.get_future().wait();
  };
  submit(scheduler, request_of(random_tokens(5, 1), 1000), holding);
  EXPECT_EQ(refused(request_of(random_tokens(5, 2), 1)), std::nullopt);
  EXPECT_EQ(refused(request_of(random_tokens(5, 3), 1)), Refusal::Kind::tenant_limit);
  EXPECT_EQ(refused(request_of(random_tokens(5, 3), 1, 1, "b")), std::nullopt);
  EXPECT_EQ(refused(request_of(random_tokens(5, 3), 1, 1, "c")), Refusal::Kind::queue_full);
  gate.set_value();
  EXPECT_EQ(holding->wait().tokens.size(), 96U) << "five read, 95 sampled and read, and one more";
  scheduler.drain(std::chrono::seconds(60));
  EXPECT_EQ(refused(request_of(random_tokens(5, 3), 1)), Refusal::Kind::draining);
}

TEST_F(SchedulerTest, TenantsTakeTurns) {
  SchedulerOptions options;
  options.max_running = 2;
  Scheduler scheduler(*runner_, nullptr, options);
  // One tenant floods; the other's single request must not wait for all of that.
  std::vector<test::Submitted> flood;
  for (std::uint64_t i = 0; i < 20; ++i)
    flood.push_back(submit(scheduler, request_of(random_tokens(30, i), 60, i)));
  const auto single = submit(scheduler, request_of(random_tokens(30, 99), 60, 99, "b"));
  const auto done = single.listener->wait().ended;
  int later = 0;
  for (const auto& request : flood) later += request.listener->wait().ended > done ? 1 : 0;
  EXPECT_GE(later, 14);
}

// Several answers to one prompt: each is what it would be alone, and the prompt is read once.
TEST_F(SchedulerTest, ChoicesShareTheirPrompt) {
  const auto prompt = random_tokens(700, 1), other = random_tokens(300, 2);
  std::vector<std::vector<std::int32_t>> expected;
  for (std::uint64_t seed = 0; seed < 5; ++seed) expected.push_back(alone(prompt, 30, seed));
  for (std::uint64_t seed = 5; seed < 7; ++seed) expected.push_back(alone(other, 30, seed));
  for (const std::int64_t max_running : {1, 2, 16}) {
    SchedulerOptions options;
    options.max_running = max_running;
    Scheduler scheduler(*runner_, nullptr, options);
    std::vector<std::shared_ptr<Listener>> listeners;
    std::vector<GenerationRequest> requests;
    for (std::uint64_t seed = 0; seed < 7; ++seed) {
      const bool first = seed == 0 || seed == 5;
      requests.push_back(request_of(!first      ? std::vector<std::int32_t>()
                                    : seed == 0 ? prompt
                                                : other,
                                    30, seed));
      requests.back().listener = listeners.emplace_back(std::make_shared<Listener>());
    }
    ASSERT_TRUE(scheduler.submit(std::move(requests)).has_value());
    for (std::size_t i = 0; i < listeners.size(); ++i) {
      const GenerationEnd& end = listeners[i]->wait();
      EXPECT_EQ(end.tokens, expected[i]) << i << " of " << max_running << " at once";
      const bool first = i == 0 || i == 5;
      EXPECT_EQ(end.cached_tokens, first ? 0 : end.prompt_tokens - 1);
    }
    EXPECT_EQ(scheduler.stats().prompt_tokens, 700 + 300 + 5);
    EXPECT_EQ(scheduler.stats().running + scheduler.stats().waiting, 0);
  }
}

TEST_F(SchedulerTest, ChoicesAreTakenAndCancelledTogether) {
  SchedulerOptions options;
  options.max_running = 2;
  options.max_waiting = 2;
  options.max_per_tenant = 4;
  Scheduler scheduler(*runner_, nullptr, options);
  const auto choices = [&](int count, std::int64_t tokens,
                           std::vector<std::shared_ptr<Listener>>& listeners) {
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < count; ++i) {
      requests.push_back(
          request_of(random_tokens(i == 0 ? 50 : 0, 1), tokens, static_cast<std::uint64_t>(i)));
      requests.back().listener = listeners.emplace_back(std::make_shared<Listener>());
    }
    return scheduler.submit(std::move(requests));
  };
  std::vector<std::shared_ptr<Listener>> none, four;
  EXPECT_EQ(choices(5, 1, none).error().kind, Refusal::Kind::tenant_limit);
  const auto ticket = choices(4, 1'000'000, four);
  ASSERT_TRUE(ticket.has_value());
  EXPECT_EQ(choices(1, 1, none).error().kind, Refusal::Kind::tenant_limit);
  EXPECT_EQ(scheduler.stats().running + scheduler.stats().waiting, 4);
  (*ticket)->cancel();
  for (const auto& listener : four) EXPECT_EQ(listener->wait().finish, FinishReason::cancelled);
  for (const auto& listener : none) EXPECT_TRUE(listener->tokens().empty());
  scheduler.drain(std::chrono::seconds(60));
  EXPECT_EQ(scheduler.stats().running + scheduler.stats().waiting, 0);
}

TEST_F(SchedulerTest, DrainEndsWhatRuns) {
  Scheduler scheduler(*runner_, nullptr, {});
  const auto endless = submit(scheduler, request_of(random_tokens(20, 1), 1'000'000));
  scheduler.drain(std::chrono::milliseconds(20));
  EXPECT_EQ(endless.listener->wait().finish, FinishReason::cancelled);
  EXPECT_EQ(scheduler.stats().running, 0);
}

TEST_F(SchedulerTest, RulesChangeTheDrawAndNotTheProbabilities) {
  Scheduler scheduler(*runner_, nullptr, {});
  const auto prompt = random_tokens(20, 1);
  GenerationRequest biased = request_of(prompt, 10);
  biased.rules.bias = {{42, 1000.0F}};
  auto listener = std::make_shared<Listener>();
  submit(scheduler, std::move(biased), listener);
  EXPECT_EQ(listener->wait().tokens, std::vector<std::int32_t>(10, 42));
  for (const double logprob : listener->logprobs()) EXPECT_LT(logprob, -1.0);

  GenerationRequest penalised = request_of(prompt, 30);
  penalised.sampling.temperature = 0;
  penalised.rules.frequency_penalty = 100;
  std::vector<std::int32_t> tokens = run(scheduler, std::move(penalised)).tokens;
  std::sort(tokens.begin(), tokens.end());
  EXPECT_EQ(std::adjacent_find(tokens.begin(), tokens.end()), tokens.end()) << "a token came twice";
}

}  // namespace
}  // namespace hadal
