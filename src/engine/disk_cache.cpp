#include "engine/disk_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/rng.h"
#include "engine/cache_index.h"

namespace hadal {
namespace {

constexpr std::int64_t kMostRecords = 100'000;
constexpr double kHalfLife = 256;  // uses after which a file is worth half

}  // namespace

Result<WindowStrategy> window_strategy_from_string(std::string_view name) {
  if (name == "periodic") return WindowStrategy::periodic;
  if (name == "full") return WindowStrategy::full;
  if (name == "none") return WindowStrategy::none;
  return fail(ErrorCode::invalid_argument,
              fmt::format("window rows on disk '{}': there are periodic, full and none", name));
}

DiskCache::DiskCache(const StateLayout& layout, DiskCacheOptions options)
    : layout_(layout), options_(std::move(options)) {}

Result<std::unique_ptr<DiskCache>> DiskCache::open(const StateLayout& layout, DiskCacheOptions options) {
  std::unique_ptr<DiskCache> cache(new DiskCache(layout, std::move(options)));
  HADAL_RETURN_IF_ERROR(make_private_directory(cache->options_.directory));
  // Two processes would each keep to the budget, and drop what the other knows.
  auto lock = DirectoryLock::take(cache->options_.directory);
  if (!lock)
    return tl::unexpected(std::move(lock).error().with_context("the cache needs a directory of its own"));
  cache->lock_.emplace(std::move(*lock));
  std::random_device device;
  cache->id_seed_ = std::uint64_t{device()} << 32 | device();
  HADAL_RETURN_IF_ERROR(cache->open_index());
  HADAL_RETURN_IF_ERROR(cache->scan());
  cache->stats_.budget = cache->options_.budget_bytes;
  cache->make_room(0, 0);
  cache->results_.clear();  // what was dropped just now is not in found_ either
  cache->thread_ = std::thread([raw = cache.get()] { raw->run(); });
  return cache;
}

DiskCache::~DiskCache() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  thread_.join();
}

Status DiskCache::read_index() {
  records_.clear();
  last_used_.clear();
  HADAL_RETURN_IF_ERROR(
      index_->for_each_file([this](std::uint64_t id, std::uint64_t clock) { last_used_[id] = clock; }));
  return index_->for_each_record([this](std::string_view name, std::string_view key, std::string_view value) {
    records_.push_back({std::string(name), std::string(key), std::string(value)});
  });
}

Status DiskCache::open_index() {
  const auto open_and_read = [this]() -> Status {
    HADAL_ASSIGN_OR_RETURN(CacheIndex index, CacheIndex::open(options_.directory));
    index_ = std::make_unique<CacheIndex>(std::move(index));
    return read_index();
  };
  Status opened = open_and_read();
  if (!opened && opened.error().code() == ErrorCode::corrupt) {
    if (options_.notice) {
      options_.notice(fmt::format("cache: {}: {}; it becomes index.sqlite.broken, and a new one is made",
                                  options_.directory.string(), opened.error().message()));
    }
    index_.reset();
    opened = CacheIndex::move_aside(options_.directory);
    if (opened) opened = open_and_read();
  }
  if (opened) return {};
  wrote(opened, "the index");
  HADAL_ASSIGN_OR_RETURN(CacheIndex index, CacheIndex::in_memory());
  index_ = std::make_unique<CacheIndex>(std::move(index));
  return read_index();
}

// Of several failures in a row the first is told: a full disk fails with every write.
void DiskCache::wrote(const Status& status, std::string_view what) {
  if (status.has_value() != failing_) return;
  failing_ = !status.has_value();
  if (!options_.notice) return;
  options_.notice(
      failing_
          ? fmt::format("cache: {}: {} cannot be written, and nothing is kept until that works again: {}",
                        options_.directory.string(), what, status.error().message())
          : fmt::format("cache: {}: writing works again", options_.directory.string()));
}

std::filesystem::path DiskCache::path_of(std::uint64_t id) const {
  return options_.directory / cache_file_name(id);
}

void DiskCache::remove_file(std::uint64_t id, std::string_view name, std::string_view why) {
  ++stats_.corrupt;
  if (options_.notice) options_.notice(fmt::format("cache: {} is left out and removed: {}", name, why));
  std::error_code ignored;
  std::filesystem::remove(options_.directory / name, ignored);
  (void)index_->remove_file(id);  // or the next start finds that it is gone
}

// Reads the header and the tokens of every file. What is broken, half written or without its parent goes;
// what belongs to another model stays, and counts against the budget. What cannot be read just now stays as
// well, and what builds on it.
Status DiskCache::scan() {
  HADAL_ASSIGN_OR_RETURN(const auto names, names_in(options_.directory));
  std::map<std::uint64_t, DiskEntry> entries;
  std::set<std::uint64_t> unread;
  for (const std::string& name : names) {
    if (name.ends_with(".part")) {  // of a process that died while it wrote
      std::error_code ignored;
      std::filesystem::remove(options_.directory / name, ignored);
      continue;
    }
    const std::uint64_t id = id_of_cache_file(name);
    if (id == 0) continue;
    const auto opened = CacheFile::open(options_.directory / name);
    if (!opened && opened.error().code() != ErrorCode::corrupt) {
      unread.insert(id);
      if (options_.notice)
        options_.notice(fmt::format("cache: {} is left out: {}", name, opened.error().message()));
    } else if (!opened) {
      remove_file(id, name, opened.error().message());
    } else if (opened->header().id != id) {
      remove_file(id, name, "it has another name inside");
    } else {
      DiskEntry entry{
          opened->header(), {opened->tokens().begin(), opened->tokens().end()}, 0, opened->bytes()};
      if (const auto used = last_used_.find(id); used != last_used_.end()) entry.last_used = used->second;
      entries.emplace(id, std::move(entry));
    }
  }
  for (const auto& [id, clock] : last_used_) {
    if (!entries.contains(id) && !unread.contains(id)) wrote(index_->remove_file(id), "the index");
  }
  std::vector<DiskEntry*> by_length;
  by_length.reserve(entries.size());
  for (auto& [id, entry] : entries) by_length.push_back(&entry);
  std::sort(by_length.begin(), by_length.end(), [](const DiskEntry* a, const DiskEntry* b) {
    return std::pair(a->header.length, a->header.id) < std::pair(b->header.length, b->header.id);
  });
  for (DiskEntry* entry : by_length) {
    const CacheFileHeader& h = entry->header;
    const auto parent = known_.find(h.parent);
    if (unread.contains(h.parent)) {
      unread.insert(h.id);
      continue;
    }
    if (h.parent != 0 &&
        (parent == known_.end() || parent->second.header.length != h.parent_length ||
         parent->second.header.name_space != h.name_space || parent->second.header.model != h.model)) {
      remove_file(h.id, cache_file_name(h.id), "what it builds on is gone");
      continue;
    }
    if (h.parent != 0) ++parent->second.children;
    known_[h.id] = {h, entry->last_used, entry->bytes, 0};
    bytes_ += entry->bytes;
    if (!last_used_.contains(h.id)) wrote(index_->put_file(h.id, entry->bytes, 0), "the index");
    const bool ours = h.model == options_.fingerprint && h.layout == layout_.fingerprint &&
                      h.page_bytes == layout_.page_bytes &&
                      (h.fixed_bytes == layout_.fixed_bytes || h.fixed_bytes == 0);
    if (ours) found_.push_back(std::move(*entry));
  }
  last_used_.clear();
  return {};
}

std::uint64_t DiskCache::new_id() {
  const std::lock_guard lock(mutex_);
  const auto block = Philox(id_seed_, 0).block(ids_++);
  const std::uint64_t id = std::uint64_t{block[0]} << 32 | block[1];
  return id == 0 ? 1 : id;
}

bool DiskCache::store(std::uint64_t id, std::uint64_t parent, const std::string& name_space,
                      std::vector<std::int32_t> tokens, SequenceState state) {
  {
    const std::lock_guard lock(mutex_);
    if (pending_stores_ >= options_.max_pending) return false;
    ++pending_stores_;
    jobs_.push_back({Job::Kind::store, id, parent, name_space, std::move(tokens), std::move(state), {}});
  }
  work_.notify_one();
  return true;
}

void DiskCache::load(std::uint64_t id) {
  {
    const std::lock_guard lock(mutex_);
    // Somebody waits for it; writes can wait behind, unless it is one of them that is wanted.
    const bool is_pending =
        std::any_of(jobs_.begin(), jobs_.end(), [id](const Job& job) { return job.id == id; });
    jobs_.insert(is_pending ? jobs_.end() : jobs_.begin(), {Job::Kind::load, id, 0, {}, {}, {}, {}});
  }
  work_.notify_one();
}

void DiskCache::put_record(Record record) {
  {
    const std::lock_guard lock(mutex_);
    // Before the writes of states, which take long: without it a turn that a client has is not found after a
    // crash.
    const auto place =
        std::find_if(jobs_.begin(), jobs_.end(), [](const Job& job) { return job.kind == Job::Kind::store; });
    jobs_.insert(place, {Job::Kind::record, 0, 0, {}, {}, {}, std::move(record)});
  }
  work_.notify_one();
}

void DiskCache::use(std::uint64_t id, std::uint64_t clock) {
  const std::lock_guard lock(mutex_);
  uses_[id] = clock;
}

std::vector<DiskResult> DiskCache::poll() {
  const std::lock_guard lock(mutex_);
  return std::exchange(results_, {});
}

void DiskCache::set_wake(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
}

void DiskCache::flush() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return jobs_.empty() && !busy_; });
}

DiskCache::Stats DiskCache::stats() const {
  const std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.pending = static_cast<std::int64_t>(jobs_.size()) + (busy_ ? 1 : 0);
  return stats;
}

void DiskCache::give(DiskResult result) {
  const std::lock_guard lock(mutex_);
  switch (result.kind) {
    case DiskResult::Kind::stored:
      ++stats_.stored;
      break;
    case DiskResult::Kind::loaded:
      ++stats_.loaded;
      break;
    case DiskResult::Kind::dropped:
      ++stats_.dropped;
      break;
    case DiskResult::Kind::load_failed:
      ++stats_.corrupt;
      break;
    case DiskResult::Kind::store_failed:
      break;
  }
  results_.push_back(std::move(result));
  if (wake_) wake_();
}

void DiskCache::run() {
  std::unique_lock lock(mutex_);
  std::int64_t records = static_cast<std::int64_t>(records_.size());
  for (;;) {
    stats_.files = static_cast<std::int64_t>(known_.size());
    stats_.bytes = bytes_;
    if (jobs_.empty()) {
      done_.notify_all();
      if (stop_) break;
      work_.wait(lock, [this] { return !jobs_.empty() || stop_; });
      continue;
    }
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    const auto uses = std::exchange(uses_, {});
    lock.unlock();
    for (const auto& [id, clock] : uses) {
      if (const auto known = known_.find(id); known != known_.end()) {
        known->second.last_used = clock;
        (void)index_->set_last_used(id, clock);
      }
    }
    switch (job.kind) {
      case Job::Kind::store:
        do_store(job);
        break;
      case Job::Kind::load:
        do_load(job);
        break;
      case Job::Kind::record:
        wrote(index_->put_record(job.record.name_space, job.record.key, job.record.value), "the index");
        if (++records % 1024 == 0) (void)index_->keep_newest_records(kMostRecords);
        break;
    }
    lock.lock();
    if (job.kind == Job::Kind::store) --pending_stores_;
    busy_ = false;
  }
}

// Files without children, the least valuable first: fewest tokens for its bytes, halved for every kHalfLife
// uses since its own. `keep` and what it builds on stay.
bool DiskCache::make_room(std::int64_t bytes, std::uint64_t keep) {
  std::uint64_t clock = 0;
  for (const auto& [id, known] : known_) clock = std::max(clock, known.last_used);
  while (bytes_ + bytes > options_.budget_bytes) {
    std::uint64_t worst = 0;
    double least = 0;
    for (const auto& [id, known] : known_) {
      if (known.children > 0 || id == keep) continue;
      const auto saved = static_cast<double>(known.header.length - known.header.parent_length);
      const double worth = saved / static_cast<double>(known.bytes) *
                           std::exp2(-static_cast<double>(clock - known.last_used) / kHalfLife);
      if (worst == 0 || worth < least) {
        worst = id;
        least = worth;
      }
    }
    if (worst == 0) return false;
    drop(worst);
    std::erase_if(found_, [worst](const DiskEntry& entry) { return entry.header.id == worst; });
  }
  return true;
}

void DiskCache::drop(std::uint64_t id) {
  const auto known = known_.find(id);
  if (known == known_.end()) return;
  bytes_ -= known->second.bytes;
  if (const auto parent = known_.find(known->second.header.parent); parent != known_.end())
    --parent->second.children;
  known_.erase(known);
  (void)index_->remove_file(id);
  std::error_code ignored;
  std::filesystem::remove(path_of(id), ignored);
  give({DiskResult::Kind::dropped, id});
}

void DiskCache::do_store(Job& job) {
  CacheFileHeader header;
  header.model = options_.fingerprint;
  header.id = job.id;
  HADAL_CHECK(job.name_space.size() == header.name_space.size());
  std::memcpy(header.name_space.data(), job.name_space.data(), header.name_space.size());
  const auto failed = [&] { give({DiskResult::Kind::store_failed, job.id, std::move(job.state)}); };
  if (job.parent != 0) {
    const auto parent = known_.find(job.parent);
    if (parent == known_.end()) return failed();  // dropped meanwhile
    header.parent = job.parent;
    header.parent_length = parent->second.header.length;
  }
  const std::int64_t pages = job.state->length() / kPageTokens - header.parent_length / kPageTokens + 1;
  const std::int64_t estimate = layout_.fixed_bytes + pages * layout_.page_bytes +
                                static_cast<std::int64_t>(4 * job.tokens.size()) + 4096;
  if (!make_room(estimate, job.parent)) return failed();  // larger than the budget
  const auto bytes = write_cache_file(path_of(job.id), header, job.tokens, *job.state,
                                      options_.windows != WindowStrategy::none);
  if (!bytes) {
    wrote(tl::unexpected(bytes.error()), "a prefix");
    return failed();
  }
  std::uint64_t clock = 0;
  for (const auto& [id, known] : known_) clock = std::max(clock, known.last_used);
  wrote(index_->put_file(job.id, *bytes, clock), "the index");  // without it the file speaks for itself
  known_[job.id] = {header, clock, *bytes, 0};
  if (header.parent != 0) ++known_[header.parent].children;
  bytes_ += *bytes;
  give({DiskResult::Kind::stored, job.id, std::move(job.state)});
}

// The pages of every ancestor up to where its child's begin, then the file's own.
Result<SequenceState> DiskCache::assemble(std::uint64_t id) {
  std::vector<std::uint64_t> chain;
  for (std::uint64_t at = id; at != 0;) {
    const auto known = known_.find(at);
    if (known == known_.end()) return fail(ErrorCode::not_found, "no longer on disk");
    chain.push_back(at);
    at = known->second.header.parent;
  }
  std::reverse(chain.begin(), chain.end());
  const CacheFileHeader& last = known_.at(id).header;
  SequenceState state(layout_);
  state.prepare_append(last.length);
  for (std::size_t i = 0; i < chain.size(); ++i) {
    auto file = CacheFile::open(path_of(chain[i]));
    if (!file) return tl::unexpected(std::move(file).error());
    const CacheFileHeader& h = file->header();
    const CacheFileHeader& known = known_.at(chain[i]).header;
    // What was checked when the index was read must still hold.
    if (h.header_hash != known.header_hash)
      return fail(ErrorCode::corrupt, fmt::format("{}: changed behind our back", path_of(chain[i]).string()));
    const bool is_last = i + 1 == chain.size();
    const std::int64_t end = h.first_page + h.pages;
    const std::int64_t to = is_last ? end : std::min(end, known_.at(chain[i + 1]).header.first_page);
    Status read = file->read_pages(h.first_page, to, state);
    if (read && is_last && h.fixed_bytes > 0) read = file->read_fixed_part(state);
    if (!read) return tl::unexpected(std::move(read).error().with_context(path_of(chain[i]).string()));
  }
  state.advance(last.length);
  return state;
}

void DiskCache::do_load(const Job& job) {
  auto state = assemble(job.id);
  if (state) {
    const bool needs_windows = known_.at(job.id).header.fixed_bytes == 0;
    give({DiskResult::Kind::loaded, job.id, std::move(*state), needs_windows});
    return;
  }
  if (state.error().code() != ErrorCode::not_found) {
    if (options_.notice)
      options_.notice(fmt::format("cache: read again instead: {}", state.error().message()));
    // Children of a broken file are useless; the scan at the next start removes them.
    if (const auto known = known_.find(job.id); known != known_.end() && known->second.children == 0)
      drop(job.id);
  }
  give({DiskResult::Kind::load_failed, job.id});
}

}  // namespace hadal
