#include "engine/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "engine/disk_cache.h"

namespace hadal {

struct Scheduler::Job {
  GenerationRequest request;
  std::shared_ptr<Ticket> ticket;
  std::uint64_t arrival = 0;
  Clock::time_point submitted, admitted, first_token;
  std::shared_ptr<const std::vector<std::int32_t>> prompt;
  std::vector<std::int32_t> tokens;       // from its first start on: the prompt, then what was sampled
  std::optional<SequenceState> state;     // of a running job
  std::optional<SequenceState> restored;  // came from disk, not yet admitted
  std::uint64_t loading = 0;              // the id that it waits for; 0: none
  std::int64_t place = 0;                 // among the requests of its ticket
  std::int64_t leader = -1;               // the place of the one whose first token it waits for
  bool started = false;
  std::int64_t cached_tokens = 0;
  std::int64_t preemptions = 0;

  std::int64_t prompt_size() const { return static_cast<std::int64_t>(prompt->size()); }
  std::int64_t sampled() const { return static_cast<std::int64_t>(tokens.size()) - prompt_size(); }
  std::int64_t unread() const { return static_cast<std::int64_t>(tokens.size()) - state->length(); }
};

struct Scheduler::Wake {
  std::mutex mutex;
  std::condition_variable ready;
  bool wanted = false;

  void notify() {
    {
      const std::lock_guard lock(mutex);
      wanted = true;
    }
    ready.notify_one();
  }
  void wait() {
    std::unique_lock lock(mutex);
    ready.wait(lock, [this] { return wanted; });
    wanted = false;
  }
};

Scheduler::Scheduler(Runner& runner, DiskCache* disk, SchedulerOptions options)
    : runner_(runner),
      disk_(options.prefix_cache ? disk : nullptr),
      options_(std::move(options)),
      cache_(runner.layout()),
      wake_(std::make_shared<Wake>()) {
  if (options_.state_bytes == 0) options_.state_bytes = SchedulerOptions{}.state_bytes;
  const StateLayout& layout = runner_.layout();
  // One sequence alone always fits: that is the longest one that is taken.
  const std::int64_t for_pages = options_.state_bytes - 2 * layout.fixed_bytes - 2 * layout.page_bytes;
  context_ = runner_.context();
  if (layout.page_bytes > 0)
    context_ = std::min(context_, std::max<std::int64_t>(for_pages / layout.page_bytes, 1) * kPageTokens);
  if (options_.context > 0) context_ = std::min(context_, options_.context);
  if (disk_ != nullptr) {
    // A prefix's tokens: its parent's, then its own.
    std::map<std::uint64_t, std::vector<std::int32_t>> tokens;
    for (const DiskEntry& entry : disk_->entries()) {
      const CacheFileHeader& h = entry.header;
      std::vector<std::int32_t> all;
      if (const auto parent = tokens.find(h.parent); parent != tokens.end()) all = parent->second;
      if (static_cast<std::int64_t>(all.size()) != h.parent_length)
        continue;  // its parent is another model's
      all.insert(all.end(), entry.tokens.begin(), entry.tokens.end());
      cache_.insert_on_disk({reinterpret_cast<const char*>(h.name_space.data()), h.name_space.size()}, all,
                            h.id, entry.last_used);
      tokens[h.id] = std::move(all);
    }
    disk_->forget_entries();
    disk_->set_wake([wake = wake_] { wake->notify(); });
  }
  publish_stats();
  thread_ = std::thread([this] { run(); });
}

Scheduler::~Scheduler() {
  {
    const std::lock_guard lock(mutex_);
    draining_ = cancel_all_ = stop_ = true;
  }
  wake_->notify();
  thread_.join();
  if (disk_ != nullptr) disk_->set_wake({});
}

std::optional<Refusal> Scheduler::check(const GenerationRequest& request, bool may_follow) const {
  if (request.prompt.empty() && !may_follow) return Refusal{Refusal::Kind::invalid, "the prompt is empty"};
  for (const std::int32_t token : request.prompt) {
    if (token < 0 || token >= runner_.vocab_size()) {
      return Refusal{Refusal::Kind::invalid,
                     fmt::format("the prompt has token {}, but the vocabulary ends at {}", token,
                                 runner_.vocab_size() - 1)};
    }
  }
  if (const Status valid = request.sampling.validate(); !valid)
    return Refusal{Refusal::Kind::invalid, valid.error().message()};
  // The last token sampled is never read, but one must be.
  if (const auto length = static_cast<std::int64_t>(request.prompt.size()); length > context_) {
    return Refusal{Refusal::Kind::too_long,
                   fmt::format("{} tokens do not fit in the context of {}", length, context_)};
  }
  return std::nullopt;
}

tl::expected<std::shared_ptr<Scheduler::Ticket>, Refusal> Scheduler::submit(GenerationRequest request) {
  std::vector<GenerationRequest> one;
  one.push_back(std::move(request));
  return submit(std::move(one));
}

tl::expected<std::shared_ptr<Scheduler::Ticket>, Refusal> Scheduler::submit(
    std::vector<GenerationRequest> requests) {
  HADAL_CHECK(!requests.empty());
  for (const GenerationRequest& request : requests) {
    if (auto refusal = check(request, &request != requests.data()))
      return tl::unexpected(std::move(*refusal));
  }
  const auto count = static_cast<std::int64_t>(requests.size());
  auto ticket = std::make_shared<Ticket>();
  ticket->scheduler_wake_ = [wake = wake_] { wake->notify(); };
  std::vector<std::unique_ptr<Job>> jobs;
  std::int64_t leader = 0;
  for (GenerationRequest& request : requests) {
    auto job = std::make_unique<Job>();
    job->place = static_cast<std::int64_t>(jobs.size());
    if (request.prompt.empty()) {
      Job& first = *jobs[static_cast<std::size_t>(leader)];
      job->leader = leader;
      job->prompt = first.prompt;
      auto& boundaries = first.request.boundaries;
      const std::int64_t before_last = first.prompt_size() - 1;
      if (before_last > 0 && (boundaries.empty() || boundaries.back() < before_last))
        boundaries.push_back(before_last);
    } else {
      leader = job->place;
      job->prompt = std::make_shared<const std::vector<std::int32_t>>(std::move(request.prompt));
    }
    job->request = std::move(request);
    job->submitted = options_.now();
    job->ticket = ticket;
    jobs.push_back(std::move(job));
  }
  {
    const std::lock_guard lock(mutex_);
    if (draining_) return tl::unexpected(Refusal{Refusal::Kind::draining, "the server is shutting down"});
    const std::string& name = jobs.front()->request.tenant;
    const auto tenant = tenants_.find(name);
    const std::int64_t load = tenant == tenants_.end() ? 0 : tenant->second.load;
    if (options_.max_per_tenant > 0 && load + count > options_.max_per_tenant) {
      return tl::unexpected(
          Refusal{Refusal::Kind::tenant_limit,
                  fmt::format("{} requests of this key are in progress{}; the limit is {}", load,
                              count > 1 ? fmt::format(" and this one wants {} answers", count) : "",
                              options_.max_per_tenant)});
    }
    if (load_ + count > options_.max_running + options_.max_waiting) {
      return tl::unexpected(Refusal{Refusal::Kind::queue_full,
                                    fmt::format("{} requests are in progress or waiting; the limit is {}",
                                                load_, options_.max_running + options_.max_waiting)});
    }
    load_ += count;
    Tenant& mine = tenants_[name];
    if (mine.load == 0) {
      // Who comes anew has no claim on turns from before, and owes none.
      double least = std::numeric_limits<double>::infinity();
      for (const auto& [other_name, other] : tenants_) {
        if (other.load > 0 && &other != &mine) least = std::min(least, other.service);
      }
      mine.service = least == std::numeric_limits<double>::infinity() ? 0 : std::max(mine.service, least);
    }
    mine.load += count;
    for (auto& job : jobs) inbox_.push_back(std::move(job));
  }
  wake_->notify();
  return ticket;
}

SchedulerStats Scheduler::stats() const {
  const std::lock_guard lock(mutex_);
  SchedulerStats stats = published_;
  for (const auto& [name, tenant] : tenants_) stats.running += tenant.running;
  stats.waiting = load_ - stats.running;
  return stats;
}

void Scheduler::drain(std::chrono::milliseconds grace) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  if (!idle_.wait_for(lock, grace, [this] { return load_ + ending_ == 0; })) {
    cancel_all_ = true;
    lock.unlock();
    wake_->notify();
    lock.lock();
    idle_.wait(lock, [this] { return load_ + ending_ == 0; });
  }
  lock.unlock();
  if (disk_ != nullptr) disk_->flush();
}

void Scheduler::run() {
  for (;;) {
    take_submissions();
    take_disk_results();
    drop_cancelled();
    admit();
    const bool worked = step();
    publish_stats();
    {
      const std::lock_guard lock(mutex_);
      if (stop_ && load_ == 0) return;
    }
    if (!worked) wake_->wait();
  }
}

void Scheduler::take_submissions() {
  const std::lock_guard lock(mutex_);
  while (!inbox_.empty()) {
    std::unique_ptr<Job> job = std::move(inbox_.front());
    inbox_.pop_front();
    job->arrival = ++arrivals_;
    if (cancel_all_) job->ticket->cancelled_ = true;
    waiting_.push_back(std::move(job));
  }
  if (cancel_all_) {
    for (const auto& job : waiting_) job->ticket->cancelled_ = true;
    for (const auto& job : running_) job->ticket->cancelled_ = true;
  }
}

void Scheduler::take_disk_results() {
  if (disk_ == nullptr) return;
  for (DiskResult& result : disk_->poll()) {
    PrefixNode* node = cache_.on_disk(result.id);
    switch (result.kind) {
      case DiskResult::Kind::stored:
        if (node != nullptr) cache_.end_write(node);
        break;
      case DiskResult::Kind::store_failed:
      case DiskResult::Kind::dropped:
        if (node != nullptr) cache_.forget_on_disk(node);
        break;
      case DiskResult::Kind::load_failed:
        ++counts_.disk_load_failures;
        if (node != nullptr) cache_.forget_on_disk(node);
        break;
      case DiskResult::Kind::loaded:
        ++counts_.disk_loads;
        if (result.needs_windows) result.state->begin_replay();
        break;
    }
    for (const auto& job : waiting_) {
      if (job->loading != result.id) continue;
      if (result.kind == DiskResult::Kind::loaded) job->restored = result.state->fork();
      if (result.kind == DiskResult::Kind::loaded || result.kind == DiskResult::Kind::load_failed)
        job->loading = 0;
    }
  }
}

void Scheduler::drop_cancelled() {
  const auto sweep = [this](std::vector<std::unique_ptr<Job>>& jobs) {
    for (std::size_t i = 0; i < jobs.size();) {
      if (jobs[i]->ticket->cancelled_) {
        finish(*jobs[i], FinishReason::cancelled);  // takes it out of `jobs`
      } else {
        ++i;
      }
    }
  };
  sweep(waiting_);
  sweep(running_);
}

// The tenant with the fewest running, then with the least service, then who came first. A preempted sequence
// keeps its place in the order of arrival.
Scheduler::Job* Scheduler::next_to_admit() {
  const std::lock_guard lock(mutex_);
  Job* best = nullptr;
  const Tenant* best_tenant = nullptr;
  for (const auto& job : waiting_) {
    if (job->loading != 0 || job->leader >= 0) continue;
    const Tenant& tenant = tenants_.at(job->request.tenant);
    if (best == nullptr || std::tuple(tenant.running, tenant.service, job->arrival) <
                               std::tuple(best_tenant->running, best_tenant->service, best->arrival)) {
      best = job.get();
      best_tenant = &tenant;
    }
  }
  return best;
}

void Scheduler::release_followers(const Job& leader) {
  for (const auto& job : waiting_) {
    if (job->ticket == leader.ticket && job->leader == leader.place) job->leader = -1;
  }
}

void Scheduler::admit() {
  while (static_cast<std::int64_t>(running_.size()) < options_.max_running) {
    Job* job = next_to_admit();
    if (job == nullptr) return;
    if (job->loading == 0 && !start(*job) && job->loading == 0) return;  // no memory now
  }
}

// Gives a waiting job its state; false if it has to wait on, for memory or (then `loading` is set) for the
// disk.
bool Scheduler::start(Job& job) {
  if (job.tokens.empty()) job.tokens = *job.prompt;
  std::optional<SequenceState> state = std::exchange(job.restored, std::nullopt);
  const bool from_disk = state.has_value();
  if (!state && options_.prefix_cache) {
    // The last token must be read in any case: it gives the logits.
    PrefixNode* node = cache_.find(job.request.cache_namespace, job.tokens,
                                   static_cast<std::int64_t>(job.tokens.size()) - 1);
    if (node != nullptr && !node->snapshot) {
      disk_->load(node->disk_id);
      disk_->use(node->disk_id, cache_.clock());
      job.loading = node->disk_id;
      return false;
    }
    if (node != nullptr) {
      state = node->snapshot->fork();
      if (node->disk_id != 0 && disk_ != nullptr) disk_->use(node->disk_id, cache_.clock());
    }
  }
  if (!state) state.emplace(runner_.layout());
  const StateLayout& layout = runner_.layout();
  const auto size = static_cast<std::int64_t>(job.tokens.size());
  const std::int64_t ahead = std::min(kReserveTokens, job.request.max_tokens - job.sampled());
  const std::int64_t pages = pages_for(std::min(size + ahead, context_)) -
                             static_cast<std::int64_t>(state->page_count()) +
                             1;  // one that is copied to be written
  if (!make_room(layout.fixed_bytes + std::max<std::int64_t>(pages, 0) * layout.page_bytes) &&
      !running_.empty()) {
    if (from_disk) job.restored = std::move(state);
    return false;
  }
  // What came from disk is worth having in memory: others may build on it.
  if (from_disk && !state->replaying()) {
    cache_.insert(job.request.cache_namespace,
                  std::span(job.tokens).first(static_cast<std::size_t>(state->length())), state->fork());
  }
  const std::int64_t cached = std::min(state->length(), job.prompt_size());
  if (!job.started) {
    job.cached_tokens = cached;
    counts_.prefix_queries += job.prompt_size();
    counts_.prefix_hits += cached;
    job.admitted = options_.now();
    job.started = true;
    job.request.listener->started(cached);
  }
  job.state = std::move(state);
  {
    const std::lock_guard lock(mutex_);
    ++tenants_.at(job.request.tenant).running;
  }
  const auto place =
      std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& w) { return w.get() == &job; });
  running_.push_back(std::move(*place));
  waiting_.erase(place);
  return true;
}

std::int64_t Scheduler::used_bytes() const {
  const StateLayout& layout = runner_.layout();
  return *layout.live_pages * layout.page_bytes +
         (static_cast<std::int64_t>(running_.size()) + cache_.snapshots()) * layout.fixed_bytes;
}

bool Scheduler::make_room(std::int64_t bytes) {
  while (used_bytes() + bytes > options_.state_bytes) {
    if (!cache_.evict()) return false;
  }
  return true;
}

// The pages that the items of the step may add: what they reach into, and one that is copied because it is
// shared. When even an empty cache leaves too little, the youngest sequence waits.
bool Scheduler::make_room_for_step() {
  std::int64_t pages = 0;
  for (const RunItem& item : items_) {
    pages += pages_for(item.state->length() + item.count) - pages_for(item.state->length()) + 1;
  }
  if (make_room(pages * runner_.layout().page_bytes) || running_.size() == 1) return true;
  preempt(**std::max_element(running_.begin(), running_.end(),
                             [](const auto& a, const auto& b) { return a->arrival < b->arrival; }));
  return false;
}

void Scheduler::preempt(Job& job) {
  ++counts_.preemptions;
  ++job.preemptions;
  keep(job, std::move(*job.state));
  job.state.reset();
  {
    const std::lock_guard lock(mutex_);
    --tenants_.at(job.request.tenant).running;
  }
  const auto place =
      std::find_if(running_.begin(), running_.end(), [&](const auto& r) { return r.get() == &job; });
  waiting_.push_back(std::move(*place));
  running_.erase(place);
}

// The next length at which the prompt's reading pauses for a snapshot.
std::int64_t Scheduler::next_boundary(const Job& job) const {
  const std::int64_t length = job.state->length();
  std::int64_t next = static_cast<std::int64_t>(job.tokens.size());
  if (!options_.prefix_cache) return next;
  const auto& boundaries = job.request.boundaries;
  if (const auto at = std::upper_bound(boundaries.begin(), boundaries.end(), length); at != boundaries.end())
    next = std::min(next, *at);
  const bool full = disk_ != nullptr && disk_->windows() == WindowStrategy::full;
  const std::int64_t every = full ? kPageTokens : options_.snapshot_tokens;
  if (every > 0) next = std::min(next, (length / every + 1) * every);
  return next;
}

// Prompt tokens of a step in which `decoding` sequences get their next token.
std::int64_t Scheduler::prefill_budget(std::int64_t decoding) {
  if (decoding == 0) return options_.chunk_tokens;
  if (cost_.wants_decode_step()) return 0;
  const std::int64_t yardstick = std::max(decoding, static_cast<std::int64_t>(running_.size()) / 2);
  budget_ =
      std::min(options_.chunk_tokens, cost_.grant(decoding, kSlowdown * cost_.decode_seconds(yardstick)));
  return budget_;
}

// Fills items_; how many of them decode.
std::int64_t Scheduler::plan_step() {
  items_.clear();
  item_jobs_.clear();
  std::vector<Job*> reading;  // more than one token, the prompt's
  for (const auto& job : running_) {
    if (job->unread() == 1) {
      add_item(*job, 1);
    } else {
      reading.push_back(job.get());
    }
  }
  const auto decoding = static_cast<std::int64_t>(items_.size());
  if (!reading.empty()) plan_prompts(reading, prefill_budget(decoding));
  return decoding;
}

void Scheduler::plan_prompts(std::vector<Job*>& reading, std::int64_t budget) {
  {
    const std::lock_guard lock(mutex_);
    const auto service = [this](const Job* job) { return tenants_.at(job->request.tenant).service; };
    const auto first = std::min_element(reading.begin(), reading.end(), [&](const Job* a, const Job* b) {
      return std::tuple(service(a), a->arrival) < std::tuple(service(b), b->arrival);
    });
    std::iter_swap(reading.begin(), first);
    std::sort(reading.begin() + 1, reading.end(), [&](const Job* a, const Job* b) {
      return std::tuple(service(a), a->unread(), a->arrival) <
             std::tuple(service(b), b->unread(), b->arrival);
    });
  }
  const auto wanted = [this](const Job* job) { return next_boundary(*job) - job->state->length(); };
  // What the others leave of their half is the first one's too.
  std::int64_t others = 0;
  for (std::size_t i = 1; i < reading.size() && others < budget / 2; ++i) others += wanted(reading[i]);
  for (Job* job : reading) {
    const std::int64_t most = job == reading.front() ? budget - std::min(others, budget / 2) : budget;
    const std::int64_t count = std::min(most, wanted(job));
    if (count <= 0) return;
    add_item(*job, count);
    budget -= count;
  }
}

void Scheduler::add_item(Job& job, std::int64_t count) {
  const auto end = static_cast<std::size_t>(job.state->length() + count);
  items_.push_back(
      {&*job.state, std::span<const std::int32_t>(job.tokens).first(end), count, end == job.tokens.size()});
  item_jobs_.push_back(&job);
}

// One forward; false if there is nothing to run.
bool Scheduler::step() {
  if (running_.empty()) return false;
  std::int64_t decoding = 0;
  do {
    decoding = plan_step();
  } while (!make_room_for_step());

  const auto start = options_.now();
  const auto logits = runner_.forward(items_);
  const double seconds = std::chrono::duration<double>(options_.now() - start).count();
  ++counts_.steps;
  std::int64_t tokens = 0;
  {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < items_.size(); ++i) {
      tokens += items_[i].count;
      if (items_[i].state->length() <= item_jobs_[i]->prompt_size()) counts_.prompt_tokens += items_[i].count;
      tenants_.at(item_jobs_[i]->request.tenant).service += static_cast<double>(items_[i].count);
    }
  }
  counts_.step_tokens += tokens;
  const auto bucket =
      std::lower_bound(SchedulerStats::kStepBounds.begin(), SchedulerStats::kStepBounds.end(), tokens);
  ++counts_.step_sizes[static_cast<std::size_t>(bucket - SchedulerStats::kStepBounds.begin())];
  if (!logits) {
    if (options_.notice) options_.notice(fmt::format("a step failed: {}", logits.error().message()));
    for (Job* job : std::vector<Job*>(item_jobs_)) finish(*job, FinishReason::cancelled, logits.error());
    return true;
  }
  cost_.add(decoding, tokens - decoding, seconds);
  const auto vocab = static_cast<std::size_t>(runner_.vocab_size());
  std::size_t row = 0;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    std::span<const float> mine;
    if (items_[i].wants_logits) mine = logits->subspan(vocab * row++, vocab);
    after_forward(*item_jobs_[i], mine);
  }
  return true;
}

void Scheduler::after_forward(Job& job, std::span<const float> logits) {
  const std::int64_t length = job.state->length();
  if (length <= job.prompt_size()) {
    // A snapshot where one is worth having, but not of the very end: the last token is read in any case.
    const auto& wanted = job.request.boundaries;
    const bool boundary = std::binary_search(wanted.begin(), wanted.end(), length);
    const bool full = disk_ != nullptr && disk_->windows() == WindowStrategy::full;
    const std::int64_t every = full ? kPageTokens : options_.snapshot_tokens;
    if (boundary || (every > 0 && length % every == 0)) keep(job, job.state->fork());
  }
  if (!logits.empty()) sample(job, logits);
}

void Scheduler::sample(Job& job, std::span<const float> logits) {
  GenerationRequest& request = job.request;
  const auto position = static_cast<std::uint64_t>(job.state->length());
  Sample sample;
  if (request.rules.active()) {
    ruled_logits_.assign(logits.begin(), logits.end());
    request.rules.apply(ruled_logits_);
    // Probabilities are reported of the model's own distribution, not of what the rules left of it.
    const Sample unruled = sampler_.sample(logits, {.temperature = 0}, position, request.top_logprobs);
    sample = sampler_.sample(ruled_logits_, request.sampling, position);
    sample.logprob = unruled.logprob + double{logits[static_cast<std::size_t>(sample.token)]} -
                     double{logits[static_cast<std::size_t>(unruled.token)]};
    sample.top = unruled.top;
  } else {
    sample = sampler_.sample(logits, request.sampling, position, request.top_logprobs);
  }
  if (job.sampled() == 0) {
    job.first_token = options_.now();
    release_followers(job);
  }
  ++counts_.generated_tokens;
  const auto& stops = request.stop_tokens;
  if (std::find(stops.begin(), stops.end(), sample.token) != stops.end()) {
    job.tokens.push_back(sample.token);  // finish() tells it apart
    return finish(job, FinishReason::stop);
  }
  job.tokens.push_back(sample.token);
  request.rules.accept(sample.token);
  if (!request.listener->token(sample)) return finish(job, FinishReason::stop);
  const bool full = static_cast<std::int64_t>(job.tokens.size()) > context_;
  if (full || job.sampled() >= request.max_tokens) finish(job, FinishReason::length);
}

// Puts a snapshot into the cache and, if it is worth it, on disk.
void Scheduler::keep(Job& job, SequenceState snapshot) {
  if (!options_.prefix_cache || snapshot.length() == 0 || snapshot.replaying()) return;
  const auto length = static_cast<std::size_t>(snapshot.length());
  const std::string& name_space = job.request.cache_namespace;
  PrefixNode* node = cache_.insert(name_space, std::span(job.tokens).first(length), std::move(snapshot));
  if (disk_ == nullptr || node->disk_id != 0) return;
  const PrefixNode* parent = node->parent;
  while (parent != nullptr && parent->disk_id == 0) parent = parent->parent;
  const std::int64_t known = parent == nullptr ? 0 : parent->length;
  if (node->length - known < kLeastWorthDisk) return;
  const auto first = job.tokens.begin() + known;
  const std::uint64_t id = disk_->new_id();
  if (disk_->store(id, parent == nullptr ? 0 : parent->disk_id, name_space,
                   {first, job.tokens.begin() + static_cast<std::ptrdiff_t>(length)},
                   node->snapshot->fork())) {
    cache_.begin_write(node, id);
  }
}

void Scheduler::finish(Job& job, FinishReason reason, std::optional<Error> error) {
  GenerationEnd end;
  end.finish = reason;
  release_followers(job);  // if it never had a token
  const bool was_running = job.state.has_value();
  if (was_running && !error) keep(job, std::move(*job.state));
  job.state.reset();
  end.error = std::move(error);
  const auto& stops = job.request.stop_tokens;
  if (reason == FinishReason::stop &&
      std::find(stops.begin(), stops.end(), job.tokens.back()) != stops.end()) {
    end.stop_token = job.tokens.back();
    job.tokens.pop_back();
  }
  if (!job.tokens.empty()) end.tokens.assign(job.tokens.begin() + job.prompt_size(), job.tokens.end());
  end.prompt_tokens = job.prompt_size();
  end.cached_tokens = job.cached_tokens;
  end.preemptions = job.preemptions;
  end.ended = options_.now();
  end.submitted = job.submitted;
  end.admitted = job.started ? job.admitted : end.ended;
  end.first_token = job.first_token == Clock::time_point() ? end.ended : job.first_token;

  auto& jobs = was_running ? running_ : waiting_;
  const auto place = std::find_if(jobs.begin(), jobs.end(), [&](const auto& j) { return j.get() == &job; });
  const std::unique_ptr<Job> owned = std::move(*place);
  jobs.erase(place);
  {
    const std::lock_guard lock(mutex_);
    const auto tenant = tenants_.find(owned->request.tenant);
    if (was_running) --tenant->second.running;
    if (--tenant->second.load == 0) tenants_.erase(tenant);
    --load_;
    ++ending_;
  }
  owned->request.listener->ended(std::move(end));
  owned->request.listener.reset();
  const std::lock_guard lock(mutex_);
  if (--ending_ + load_ == 0) idle_.notify_all();
}

void Scheduler::publish_stats() {
  counts_.state_bytes = used_bytes();
  counts_.state_budget = options_.state_bytes;
  counts_.snapshots = cache_.snapshots();
  counts_.nodes = cache_.nodes();
  counts_.prefill_budget = budget_;
  const std::lock_guard lock(mutex_);
  published_ = counts_;
}

}  // namespace hadal
