// Continuous batching: one thread that owns the states of all sequences and runs one ragged forward after
// another, decode steps of running sequences and chunks of new prompts together.
//
// What a request gets does not depend on the others: its tokens come from logits that are bitwise the same in
// any company (docs/architecture.md) and from draws that depend on its seed and position alone. Others only
// decide when it gets them:
// - A sequence is admitted when the memory for its prompt and the next kReserveTokens fits into the plan.
// When
//   the plan overflows later, cached snapshots go first, then the youngest sequence waits again. It loses
//   nothing: its tokens stay, and its state is cached or read again.
// - While sequences decode, a step takes only so many prompt tokens that it stays within kSlowdown times the
//   duration of a step without any, by what steps cost so far (engine/step_cost.h). Half of the sequences
//   that run count as decoding even if fewer do: where many share a machine, a stream that is early is not
//   held to the speed that it has alone. Chunking does not show in results, so this may follow the clock.
// - Tenants take turns by the tokens that were computed for them; within one, first come, first served. Of
// the
//   prompt tokens of a step the first in turn gets half, then prompts with the least left come first: a short
//   one is not held up by a long one, nor a long one for ever.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <hadal/engine.h>

#include "base/log.h"
#include "engine/logit_rules.h"
#include "engine/prefix_cache.h"
#include "engine/runner.h"
#include "engine/sampler.h"
#include "engine/step_cost.h"

namespace hadal {

class DiskCache;

using SchedulerClock = std::chrono::steady_clock;

struct SchedulerOptions {
  std::int64_t max_running = 16;    // sequences in a step
  std::int64_t max_waiting = 256;   // beyond them, of all tenants together
  std::int64_t max_per_tenant = 0;  // running and waiting, of one tenant; 0: no limit of its own
  std::int64_t chunk_tokens = 512;  // prompt tokens in a step
  std::int64_t context = 0;         // most tokens of a sequence; 0: what model and memory allow
  std::int64_t state_bytes = std::int64_t{2}
                             << 30;     // of running sequences and cached snapshots; 0: as given here
  std::int64_t snapshot_tokens = 4096;  // a snapshot every so many tokens of a long prompt; 0: none
  bool prefix_cache = true;
  Notice notice;  // hears of failures that no request can be told
  // What steps and requests are timed by; from any thread.
  std::function<SchedulerClock::time_point()> now = SchedulerClock::now;
};

struct GenerationEnd {
  FinishReason finish = FinishReason::length;
  std::optional<Error> error;              // the forward failed; `finish` says nothing then
  std::optional<std::int32_t> stop_token;  // was sampled and ended it
  std::vector<std::int32_t> tokens;        // what was sampled, without the stop token
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;  // of the prompt, not read again
  std::int64_t preemptions = 0;
  SchedulerClock::time_point submitted, admitted, first_token, ended;  // not reached: `ended`
};

// Hears about one request, on the scheduler's thread, which waits meanwhile.
class GenerationListener {
 public:
  GenerationListener() = default;
  GenerationListener(const GenerationListener&) = delete;
  GenerationListener& operator=(const GenerationListener&) = delete;
  virtual ~GenerationListener() = default;

  virtual void started(std::int64_t cached_tokens) = 0;  // admitted; not called again after a preemption
  virtual bool token(const Sample& sample) = 0;          // false: this was the last one
  virtual void ended(GenerationEnd end) = 0;             // once, the last call
};

struct GenerationRequest {
  std::vector<std::int32_t> prompt;  // empty, of several submitted together: that of the one before
  std::int64_t max_tokens = 256;
  SamplingOptions sampling;
  LogitRules rules;
  std::vector<std::int32_t> stop_tokens;
  std::int64_t top_logprobs = 0;
  std::string tenant;                    // whose turn it counts against
  std::string cache_namespace;           // whose snapshots it may use
  std::vector<std::int64_t> boundaries;  // lengths of the prompt worth a snapshot, ascending
  std::shared_ptr<GenerationListener> listener;
};

// Why a request was not taken.
struct Refusal {
  enum class Kind : std::uint8_t { invalid, too_long, tenant_limit, queue_full, draining };
  Kind kind;
  std::string message;
};

struct SchedulerStats {
  // Upper bounds of the buckets of step_sizes; the last bucket has none.
  static constexpr std::array<std::int64_t, 10> kStepBounds = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};

  std::int64_t running = 0, waiting = 0;
  std::int64_t state_bytes = 0, state_budget = 0;
  std::int64_t snapshots = 0, nodes = 0;
  std::int64_t prefix_queries = 0, prefix_hits = 0;  // tokens looked up, and found
  std::int64_t disk_loads = 0, disk_load_failures = 0;
  std::int64_t preemptions = 0;
  std::int64_t prompt_tokens = 0, generated_tokens = 0;  // read, sampled
  std::int64_t steps = 0, step_tokens = 0;
  std::array<std::int64_t, kStepBounds.size() + 1> step_sizes{};
  std::int64_t prefill_budget = 0;  // prompt tokens that a step beside decoding takes at present
};

class Scheduler {
 public:
  // A request that was taken. cancel() may be called from any thread, any number of times; the request then
  // ends before the next step, and its listener hears so.
  class Ticket {
   public:
    void cancel() {
      cancelled_ = true;
      if (scheduler_wake_) scheduler_wake_();
    }

   private:
    friend class Scheduler;
    std::atomic<bool> cancelled_{false};
    std::function<void()> scheduler_wake_;
  };

  // `runner` and `disk` (null: none) must outlive the scheduler.
  Scheduler(Runner& runner, DiskCache* disk, SchedulerOptions options);
  ~Scheduler();  // cancels what is left
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // From any thread. Of several requests, which are one tenant's, all are taken or none, under one ticket. A
  // prompt that several of them share is read once: those that follow wait until the first of them has its
  // first token, and begin from the snapshot that it left before the last token of the prompt.
  tl::expected<std::shared_ptr<Ticket>, Refusal> submit(GenerationRequest request);
  tl::expected<std::shared_ptr<Ticket>, Refusal> submit(std::vector<GenerationRequest> requests);
  std::int64_t context() const { return context_; }
  SchedulerStats stats() const;
  // No more requests; those that were taken go on for `grace`, then they are cancelled. Returns when the last
  // has ended and everything worth keeping is on disk.
  void drain(std::chrono::milliseconds grace);

 private:
  using Clock = SchedulerClock;
  struct Job;
  struct Tenant {
    std::int64_t load = 0;     // requests, running and waiting
    std::int64_t running = 0;  // of them
    double service = 0;        // tokens computed
  };
  struct Wake;  // what outlives the scheduler in tickets

  static constexpr std::int64_t kReserveTokens = 512;
  static constexpr double kSlowdown = 1.8;             // the promise is two, but steps vary
  static constexpr std::int64_t kLeastWorthDisk = 64;  // new tokens

  std::optional<Refusal> check(const GenerationRequest& request, bool may_follow) const;
  void run();
  void take_submissions();
  void take_disk_results();
  void drop_cancelled();
  void admit();
  Job* next_to_admit();
  void release_followers(const Job& leader);
  bool start(Job& job);
  bool step();
  std::int64_t prefill_budget(std::int64_t decoding);
  std::int64_t plan_step();
  void plan_prompts(std::vector<Job*>& reading, std::int64_t budget);
  void add_item(Job& job, std::int64_t count);
  std::int64_t next_boundary(const Job& job) const;
  bool make_room(std::int64_t bytes);
  bool make_room_for_step();
  void preempt(Job& job);
  void after_forward(Job& job, std::span<const float> logits);
  void sample(Job& job, std::span<const float> logits);
  void keep(Job& job, SequenceState snapshot);
  void finish(Job& job, FinishReason reason, std::optional<Error> error = std::nullopt);
  std::int64_t used_bytes() const;
  std::int64_t pages_for(std::int64_t tokens) const { return (tokens + kPageTokens - 1) / kPageTokens; }
  void publish_stats();

  Runner& runner_;
  DiskCache* disk_;
  SchedulerOptions options_;
  std::int64_t context_ = 0;

  // Of the scheduler's thread.
  PrefixCache cache_;
  Sampler sampler_;
  std::vector<std::unique_ptr<Job>> waiting_, running_;
  std::vector<RunItem> items_;
  std::vector<Job*> item_jobs_;
  std::vector<float> ruled_logits_;
  SchedulerStats counts_;
  StepCost cost_;
  std::int64_t budget_ = 0;  // prompt tokens that the last step beside decoding could take
  std::uint64_t arrivals_ = 0;

  // Shared.
  std::shared_ptr<Wake> wake_;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  std::deque<std::unique_ptr<Job>> inbox_;
  std::map<std::string, Tenant, std::less<>> tenants_;
  std::int64_t load_ = 0;    // requests that have not ended
  std::int64_t ending_ = 0;  // whose listeners are being told so
  bool draining_ = false;
  bool cancel_all_ = false;
  bool stop_ = false;
  SchedulerStats published_;

  std::thread thread_;
};

}  // namespace hadal
