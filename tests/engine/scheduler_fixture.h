// A scheduler over the embedded model, and a listener that remembers what it hears.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/rng.h"
#include "engine/disk_cache.h"
#include "engine/scheduler.h"

namespace hadal::test {

class Listener final : public GenerationListener {
 public:
  void started(std::int64_t cached_tokens) override {
    const std::lock_guard lock(mutex_);
    cached_ = cached_tokens;
  }
  bool token(const Sample& sample) override {
    const std::lock_guard lock(mutex_);
    tokens_.push_back(sample.token);
    logprobs_.push_back(sample.logprob);
    if (on_token) on_token(tokens_.size());
    return tokens_.size() < stop_after;
  }
  void ended(GenerationEnd end) override {
    const std::lock_guard lock(mutex_);
    end_ = std::move(end);
    ended_.notify_all();
  }
  const GenerationEnd& wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return end_.has_value(); });
    return *end_;
  }
  std::vector<double> logprobs() const { return logprobs_; }
  const std::vector<std::int32_t>& tokens() const { return tokens_; }

  std::size_t stop_after = SIZE_MAX;
  std::function<void(std::size_t)> on_token;

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  std::int64_t cached_ = -1;
  std::vector<std::int32_t> tokens_;
  std::vector<double> logprobs_;
  std::optional<GenerationEnd> end_;
};

inline Engine open_embedded(int threads = 2) {
  EngineOptions options;
  options.threads = threads;
  auto engine = Engine::open(options);
  EXPECT_TRUE(engine.has_value()) << engine.error().message();
  return std::move(*engine);
}

// Ids that the embedded model has, the same for the same seed.
inline std::vector<std::int32_t> random_tokens(std::size_t count, std::uint64_t seed) {
  const Philox random(seed, 7);
  std::vector<std::int32_t> tokens;
  for (std::uint64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>(10 + random.block(i)[0] % 300));
  return tokens;
}

struct Submitted {
  std::shared_ptr<Listener> listener;
  std::shared_ptr<Scheduler::Ticket> ticket;
};

inline GenerationRequest request_of(std::vector<std::int32_t> prompt, std::int64_t max_tokens,
                                    std::uint64_t seed = 1, std::string tenant = "a") {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.seed = seed;
  request.tenant = tenant;
  request.cache_namespace = std::string(32, tenant.front());
  return request;
}

inline Submitted submit(Scheduler& scheduler, GenerationRequest request,
                        std::shared_ptr<Listener> listener = std::make_shared<Listener>()) {
  request.listener = listener;
  auto ticket = scheduler.submit(std::move(request));
  EXPECT_TRUE(ticket.has_value()) << ticket.error().message;
  return {listener, ticket ? *ticket : nullptr};
}

inline const GenerationEnd& run(Scheduler& scheduler, GenerationRequest request) {
  static std::vector<std::shared_ptr<Listener>> kept;  // what wait() refers to
  kept.push_back(submit(scheduler, std::move(request)).listener);
  return kept.back()->wait();
}

// A directory that is gone when the test is.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "hadal_test_XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace hadal::test
