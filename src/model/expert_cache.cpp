#include "model/expert_cache.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/rng.h"
#include "model/weight_check.h"
#include "tensor/finite.h"

namespace hadal {
namespace {

using Clock = std::chrono::steady_clock;

// An expert's use counts half after so many tokens more.
constexpr double kHalfLife = 128;
// Of a guess at the next layer's experts, read ahead only if so many of the latest ones were right: a wrong
// one costs a slot whose expert would have been wanted again with about this chance.
constexpr double kWorthReading = 0.25;
// What one reader reads at a time: small enough that all share one wanted expert, and that a wanted read
// waits no more than 1 ms for what is read ahead; large enough for the disk's full rate.
constexpr std::uint64_t kPiece = std::uint64_t{2} << 20;
constexpr auto kAskEvery = std::chrono::milliseconds(20);

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

ExpertCache::Statistics ExpertCache::Statistics::since(const Statistics& earlier) const {
  return {hits - earlier.hits,
          prefetch_hits - earlier.prefetch_hits,
          misses - earlier.misses,
          hit_bytes_read - earlier.hit_bytes_read,
          miss_bytes_read - earlier.miss_bytes_read,
          bytes_read - earlier.bytes_read,
          predicted - earlier.predicted,
          predicted_right - earlier.predicted_right,
          read_seconds - earlier.read_seconds,
          wait_seconds - earlier.wait_seconds};
}

Result<std::unique_ptr<ExpertCache>> ExpertCache::open(std::span<const std::filesystem::path> files,
                                                       std::vector<StoredExpert> experts,
                                                       std::int64_t per_block, std::int64_t k,
                                                       std::int64_t slots) {
  HADAL_CHECK(slots >= least_slots(k) && !experts.empty());
  std::vector<DirectFile> opened;
  for (const auto& path : files) {
    HADAL_ASSIGN_OR_RETURN(DirectFile file, DirectFile::open(path));
    opened.push_back(std::move(file));
  }
  std::uint64_t slot_bytes = 0;
  for (const StoredExpert& expert : experts) slot_bytes = std::max(slot_bytes, expert.bytes);
  HADAL_ASSIGN_OR_RETURN(AnonymousMemory memory,
                         AnonymousMemory::map(static_cast<std::size_t>(slots) * slot_bytes));
  return std::unique_ptr<ExpertCache>(new ExpertCache(std::move(opened), std::move(experts), per_block, k,
                                                      slots, slot_bytes, std::move(memory)));
}

ExpertCache::ExpertCache(std::vector<DirectFile> files, std::vector<StoredExpert> experts,
                         std::int64_t per_block, std::int64_t k, std::int64_t slots, std::uint64_t slot_bytes,
                         AnonymousMemory memory)
    : files_(std::move(files)),
      experts_(std::move(experts)),
      per_block_(per_block),
      prefetch_limit_(std::min(slots - k, std::max(k, slots / 4))),
      slot_bytes_(slot_bytes),
      pieces_(experts_.size()),
      memory_(std::move(memory)),
      entries_(experts_.size()),
      slots_(static_cast<std::size_t>(slots), -1),
      uses_(static_cast<std::size_t>(per_block)),
      wave_(static_cast<std::size_t>(per_block)),
      predicted_(experts_.size()) {
  std::transform(experts_.begin(), experts_.end(), pieces_.begin(), count_pieces);
  for (std::size_t e = 0; e < wave_.size(); ++e)
    wave_[e] = experts_[e].shape;  // of experts that never came too
  for (int i = 0; i < kReaders; ++i) readers_.emplace_back([this] { reader_main(); });
}

ExpertCache::~ExpertCache() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (std::thread& reader : readers_) reader.join();
}

// Use ------------------------------------------------------------------------------------------------------

// The use of an expert is a sum over the tokens it served, each worth 2^(-age / half-life), age in tokens:
// how often it is wanted lately. Every sum shrinks by the same factor as time goes on, so which of two is the
// smaller never changes between uses, and it is enough to keep
//   key = log2(sum of 2^(time / half-life)),
// which only a use changes. All blocks see all tokens, so experts of different blocks compete on equal terms
// whatever the order in which a forward visits them.
void ExpertCache::touch(Entry& entry, std::int64_t uses) const {
  const double now = clock_ / kHalfLife;
  entry.key = now + std::log2(std::exp2(std::max(entry.key - now, -1000.0)) + static_cast<double>(uses));
}

// A slot for entry `id`: a free one, else that of the expert with the least use; -1 if there is none now.
// Experts that the block still wants stay, with one exception: when the forward can go on with nothing but
// `id`, and every slot holds what it wants later, the one that it wants last goes and is read again.
std::int32_t ExpertCache::take_slot(std::int32_t id, bool wanted) {
  const bool stuck = wanted && wave_begin_ == handed_out_ && id == wanted_[handed_out_];
  std::int32_t best = -1, best_soon = -1, best_wanted = -1;
  for (std::size_t s = 0; s < slots_.size(); ++s) {
    const auto slot = static_cast<std::int32_t>(s);
    if (slots_[s] < 0) {
      slots_[s] = id;
      return slot;
    }
    const Entry& entry = entries_[static_cast<std::size_t>(slots_[s])];
    if (entry.where != Where::memory || entry.in_use) continue;
    const auto less_used = [&](std::int32_t than) {
      return than < 0 ||
             entry.key < entries_[static_cast<std::size_t>(slots_[static_cast<std::size_t>(than)])].key;
    };
    if (entry.wanted) {
      if (stuck && (best_wanted < 0 || slots_[s] > slots_[static_cast<std::size_t>(best_wanted)]))
        best_wanted = slot;
    } else if (entry.soon) {
      if (less_used(best_soon)) best_soon = slot;
    } else if (less_used(best)) {
      best = slot;
    }
  }
  if (best < 0 && wanted) best = best_soon >= 0 ? best_soon : best_wanted;
  if (best < 0) return -1;
  const std::int32_t loser = std::exchange(slots_[static_cast<std::size_t>(best)], id);
  Entry& entry = entries_[static_cast<std::size_t>(loser)];
  entry.where = Where::disk;
  entry.slot = -1;
  entry.prefetched = false;
  if (std::exchange(entry.soon, false)) --soon_;
  if (entry.wanted) {  // it has to come back; what is queued is ascending
    entry.where = Where::queued;
    wanted_queue_.insert(std::lower_bound(wanted_queue_.begin(), wanted_queue_.end(), loser), loser);
  }
  return best;
}

// Reading --------------------------------------------------------------------------------------------------

// Piece `index` of an expert's ranges.
ExpertCache::Piece ExpertCache::piece(std::int32_t id, std::int32_t index) const {
  auto left = static_cast<std::uint64_t>(index);
  for (const FileRange& range : experts_[static_cast<std::size_t>(id)].ranges) {
    const std::uint64_t begin = range.offset / DirectFile::kBlock * DirectFile::kBlock;
    const std::uint64_t count = (range.end() - begin + kPiece - 1) / kPiece;
    if (left < count) {
      const std::uint64_t at = begin + left * kPiece;
      return {id, range.file, at, std::min(kPiece, range.end() - at), range.memory + left * kPiece};
    }
    left -= count;
  }
  return {};
}

std::int32_t ExpertCache::count_pieces(const StoredExpert& expert) {
  std::uint64_t count = 0;
  for (const FileRange& range : expert.ranges)
    count += (range.end() - range.offset / DirectFile::kBlock * DirectFile::kBlock + kPiece - 1) / kPiece;
  return static_cast<std::int32_t>(count);
}

// What is wanted goes first, the lowest id before the next; several readers share an expert.
std::optional<ExpertCache::Piece> ExpertCache::start_piece() {
  const auto take = [&](std::deque<std::int32_t>& loads) {
    const std::int32_t id = loads.front();
    Entry& entry = entries_[static_cast<std::size_t>(id)];
    const Piece next = piece(id, entry.begun++);
    if (entry.begun == pieces_[static_cast<std::size_t>(id)]) loads.pop_front();
    ++reading_;
    if (reading_ == 1) reading_since_ = Clock::now();
    return next;
  };
  const auto begin = [&](std::deque<std::int32_t>& queue, std::deque<std::int32_t>& loads, bool wanted) {
    const std::int32_t id = queue.front();
    const std::int32_t slot = take_slot(id, wanted);
    if (slot < 0) return false;
    queue.pop_front();  // what take_slot queued again came behind it
    Entry& entry = entries_[static_cast<std::size_t>(id)];
    entry.slot = slot;
    entry.where = Where::loading;
    entry.begun = entry.ended = 0;
    entry.prefetched = !wanted;
    loads.push_back(id);
    return true;
  };
  if (!wanted_loads_.empty()) return take(wanted_loads_);
  if (!wanted_queue_.empty()) {
    if (!begin(wanted_queue_, wanted_loads_, true)) return std::nullopt;
    return take(wanted_loads_);
  }
  if (!ahead_loads_.empty()) return take(ahead_loads_);
  if (prefetch_queue_.empty() || !begin(prefetch_queue_, ahead_loads_, false)) return std::nullopt;
  return take(ahead_loads_);
}

Status ExpertCache::read(const Piece& piece, std::byte* slot) const {
  Status done = files_[piece.file].read(piece.offset, piece.bytes, slot + piece.memory);
  if (done) return check(piece, slot);
  // The first tensor that has a byte in the piece stands for all.
  for (const FilePiece& tensor : experts_[static_cast<std::size_t>(piece.id)].pieces) {
    if (tensor.file == piece.file && tensor.offset < piece.offset + piece.bytes &&
        tensor.end() > piece.offset)
      return tl::unexpected(Error(done.error()).with_context(fmt::format("tensor '{}'", tensor.name)));
  }
  return done;
}

// What check_weights leaves to the cache: scales, and FP8 codes, of the part of an expert that was read.
Status ExpertCache::check(const Piece& piece, const std::byte* slot) const {
  const StoredExpert& expert = experts_[static_cast<std::size_t>(piece.id)];
  const Linear* const linears[] = {&expert.shape.w1, &expert.shape.w2, &expert.shape.w3};
  for (std::size_t i = 0; i < expert.pieces.size(); ++i) {
    const Linear& w = *linears[i / 2];
    const FilePiece& tensor = expert.pieces[i];
    const bool scales = i % 2 == 1;
    if (tensor.file != piece.file || !w.quantised() || (!scales && w.format == Linear::Format::fp4)) continue;
    const std::uint64_t begin = std::max(tensor.offset, piece.offset);
    const std::uint64_t end = std::min(tensor.end(), piece.offset + piece.bytes);
    if (begin >= end) continue;
    const std::byte* data = slot + piece.memory + (begin - piece.offset);
    const auto n = static_cast<std::int64_t>(end - begin);
    const std::int64_t bad =
        scales ? first_scale_above(w.format == Linear::Format::fp8 ? kMostScaleOfE4m3 : kMostScaleOfE2m1,
                                   reinterpret_cast<const std::uint8_t*>(data), n)
               : first_not_finite(DType::f8_e4m3, data, n);
    if (bad < 0) continue;
    return tl::unexpected(not_finite(tensor.name, scales ? DType::f8_e8m0 : DType::f8_e4m3,
                                     scales ? scale_shape(w.format, w.out, w.in) : Shape{w.out, w.in},
                                     data + bad, static_cast<std::int64_t>(begin - tensor.offset) + bad)
                              .with_context(files_[piece.file].path().filename().string()));
  }
  return {};
}

// No more pieces of an expert that is being read are begun. Its slot is free when those under way have ended.
void ExpertCache::drop_load(std::int32_t id) {
  entries_[static_cast<std::size_t>(id)].dropped = true;
  std::erase(wanted_loads_, id);
  std::erase(ahead_loads_, id);
  settle(id);
}

// After a piece has ended: whether the expert is in memory now, or out of it.
void ExpertCache::settle(std::int32_t id) {
  Entry& entry = entries_[static_cast<std::size_t>(id)];
  if (entry.ended < entry.begun) return;
  if (!entry.dropped) {
    if (entry.ended == pieces_[static_cast<std::size_t>(id)]) entry.where = Where::memory;
    return;
  }
  entry.dropped = false;
  slots_[static_cast<std::size_t>(std::exchange(entry.slot, -1))] = -1;
  entry.where = Where::disk;
  entry.prefetched = false;
  if (std::exchange(entry.soon, false)) --soon_;
  if (entry.wanted && !error_) {  // wanted again since it was dropped
    entry.where = Where::queued;
    wanted_queue_.insert(std::lower_bound(wanted_queue_.begin(), wanted_queue_.end(), id), id);
  }
}

void ExpertCache::reader_main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    std::optional<Piece> piece;
    while (!stop_ && !(piece = start_piece())) work_.wait(lock);
    if (stop_) return;
    Entry& entry = entries_[static_cast<std::size_t>(piece->id)];
    std::byte* slot = slot_memory(entry.slot);
    lock.unlock();
    Status done = read(*piece, slot);
    lock.lock();
    --reading_;
    if (reading_ == 0) statistics_.read_seconds += seconds_since(reading_since_);
    statistics_.bytes_read += static_cast<std::int64_t>(piece->bytes);
    ++entry.ended;
    if (done) {
      settle(piece->id);
    } else {
      // What was only read ahead is read again when it is wanted, and the error comes then.
      if (entry.wanted) error_ = std::move(done).error();
      drop_load(piece->id);
    }
    arrived_.notify_one();
    work_.notify_all();  // a slot that can now be taken
  }
}

// The forward ----------------------------------------------------------------------------------------------

void ExpertCache::begin_forward(std::int64_t n_tokens, const std::function<bool()>& cancelled) {
  const std::lock_guard lock(mutex_);
  clock_ += static_cast<double>(n_tokens);
  cancelled_ = cancelled;
}

void ExpertCache::want(std::int64_t block, std::span<const std::int32_t> indices) {
  const std::lock_guard lock(mutex_);
  HADAL_CHECK(wanted_.empty());
  std::fill(uses_.begin(), uses_.end(), 0);
  for (const std::int32_t index : indices) ++uses_[static_cast<std::size_t>(index)];

  // What was read ahead for this block and before has had its time.
  const auto base = static_cast<std::int32_t>(block * per_block_);
  std::int64_t predicted = 0, right = 0;
  for (std::int32_t e = 0; e < per_block_; ++e) {
    Entry& entry = entries_[static_cast<std::size_t>(base) + static_cast<std::size_t>(e)];
    if (std::exchange(entry.soon, false)) --soon_;
    const bool wanted = uses_[static_cast<std::size_t>(e)] > 0;
    if (predicted_[static_cast<std::size_t>(base) + static_cast<std::size_t>(e)]) {
      predicted_[static_cast<std::size_t>(base) + static_cast<std::size_t>(e)] = false;
      ++predicted;
      right += wanted ? 1 : 0;
    }
    if (wanted) wanted_.push_back(base + e);
  }
  statistics_.predicted += predicted;
  statistics_.predicted_right += right;
  if (predicted > 0) {
    precision_ += 0.05 * (static_cast<double>(right) / static_cast<double>(predicted) - precision_);
  }
  // What was to be read ahead for this block is wanted now or not at all.
  std::erase_if(prefetch_queue_, [&](std::int32_t id) {
    if (id < base || id >= base + per_block_) return false;
    entries_[static_cast<std::size_t>(id)].where = Where::disk;
    return true;
  });

  const std::vector<std::int32_t> ahead(ahead_loads_.begin(), ahead_loads_.end());
  for (const std::int32_t id : ahead) {
    if (id < base || id >= base + per_block_) continue;
    if (uses_[static_cast<std::size_t>(id - base)] == 0) {
      drop_load(id);
    } else {
      std::erase(ahead_loads_, id);
      wanted_loads_.insert(std::lower_bound(wanted_loads_.begin(), wanted_loads_.end(), id), id);
    }
  }

  for (const std::int32_t id : wanted_) {
    Entry& entry = entries_[static_cast<std::size_t>(id)];
    const auto bytes = static_cast<std::int64_t>(experts_[static_cast<std::size_t>(id)].bytes);
    entry.wanted = true;
    touch(entry, uses_[static_cast<std::size_t>(id - base)]);
    const bool prefetched = std::exchange(entry.prefetched, false);
    if (entry.where == Where::disk) {
      ++statistics_.misses;
      statistics_.miss_bytes_read += bytes;
      entry.where = Where::queued;
      wanted_queue_.push_back(id);
    } else if (prefetched) {
      ++statistics_.prefetch_hits;
      statistics_.hit_bytes_read += bytes;
    } else {
      ++statistics_.hits;
    }
  }
  handed_out_ = wave_begin_ = 0;
  work_.notify_all();
}

void ExpertCache::release_wave() {
  for (; wave_begin_ < handed_out_; ++wave_begin_) {
    const std::int32_t id = wanted_[wave_begin_];
    entries_[static_cast<std::size_t>(id)].in_use = false;
    wave_[static_cast<std::size_t>(id % per_block_)] = experts_[static_cast<std::size_t>(id)].shape;
  }
}

void ExpertCache::forget_wanted() {
  for (const std::int32_t id : wanted_) entries_[static_cast<std::size_t>(id)].wanted = false;
  for (const std::int32_t id : wanted_queue_) entries_[static_cast<std::size_t>(id)].where = Where::disk;
  wanted_queue_.clear();
  wanted_.clear();
  handed_out_ = wave_begin_ = 0;
  error_.reset();
  cancelled_ = {};
}

Result<ExpertCache::Wave> ExpertCache::next() {
  std::unique_lock lock(mutex_);
  HADAL_CHECK(handed_out_ < wanted_.size());
  release_wave();
  work_.notify_all();
  const Entry& first = entries_[static_cast<std::size_t>(wanted_[handed_out_])];
  if (first.where != Where::memory) {
    const auto start = Clock::now();
    while (first.where != Where::memory && !error_) {
      arrived_.wait_for(lock, kAskEvery);
      if (cancelled_ && cancelled_())
        error_.emplace(ErrorCode::cancelled, "cancelled while experts were read");
    }
    statistics_.wait_seconds += seconds_since(start);
  }
  if (error_) {
    Error error = *std::move(error_);
    forget_wanted();
    return tl::unexpected(std::move(error));
  }
  for (; handed_out_ < wanted_.size(); ++handed_out_) {
    const auto id = static_cast<std::size_t>(wanted_[handed_out_]);
    Entry& entry = entries_[id];
    if (entry.where != Where::memory) break;
    entry.in_use = true;
    entry.wanted = false;
    Expert& expert = wave_[id % static_cast<std::size_t>(per_block_)];
    expert = experts_[id].shape;
    const std::byte* slot = slot_memory(entry.slot);
    const auto& at = experts_[id].at;
    Linear* const linears[] = {&expert.w1, &expert.w2, &expert.w3};
    for (std::size_t i = 0; i < 3; ++i) {
      linears[i]->weight = slot + at[2 * i];
      if (linears[i]->quantised())
        linears[i]->scale = reinterpret_cast<const std::uint8_t*>(slot + at[2 * i + 1]);
    }
  }
  return Wave{wave_, handed_out_ == wanted_.size()};
}

void ExpertCache::finish() {
  const std::lock_guard lock(mutex_);
  release_wave();
  wanted_.clear();
  handed_out_ = wave_begin_ = 0;
  work_.notify_all();
}

void ExpertCache::prefetch(std::int64_t block, std::span<const std::int32_t> experts, bool certain) {
  const std::lock_guard lock(mutex_);
  const auto base = static_cast<std::size_t>(block * per_block_);
  const bool follow = certain || precision_ >= kWorthReading;
  for (const std::int32_t e : experts) {
    const auto id = base + static_cast<std::size_t>(e);
    Entry& entry = entries_[id];
    if (!certain) predicted_[id] = true;
    if (!follow || soon_ >= prefetch_limit_ || entry.soon) continue;
    entry.soon = true;
    ++soon_;
    if (entry.where == Where::disk) {
      entry.where = Where::queued;
      prefetch_queue_.push_back(static_cast<std::int32_t>(id));
    }
  }
  work_.notify_all();
}

// What it has done -----------------------------------------------------------------------------------------

ExpertCache::Statistics ExpertCache::statistics() const {
  const std::lock_guard lock(mutex_);
  Statistics now = statistics_;
  if (reading_ > 0) now.read_seconds += seconds_since(reading_since_);
  return now;
}

std::int64_t ExpertCache::slots_used() const {
  const std::lock_guard lock(mutex_);
  return slots() - std::count(slots_.begin(), slots_.end(), -1);
}

bool ExpertCache::direct() const {
  return std::all_of(files_.begin(), files_.end(), [](const DirectFile& file) { return file.direct(); });
}

Result<double> ExpertCache::measure_disk(std::int64_t count, std::uint64_t seed) {
  // The first slots, one per reader, are emptied when no reader of the cache is at work.
  const std::size_t readers = std::min<std::size_t>(kReaders, slots_.size());
  {
    std::unique_lock lock(mutex_);
    HADAL_CHECK(wanted_.empty());
    for (const std::int32_t id : prefetch_queue_) entries_[static_cast<std::size_t>(id)].where = Where::disk;
    prefetch_queue_.clear();
    arrived_.wait(lock, [&] { return reading_ == 0 && wanted_loads_.empty() && ahead_loads_.empty(); });
    for (std::size_t s = 0; s < readers; ++s) {
      if (slots_[s] < 0) continue;
      Entry& entry = entries_[static_cast<std::size_t>(std::exchange(slots_[s], -1))];
      if (entry.soon) --soon_;
      entry = Entry{.key = entry.key};
    }
  }
  const Philox random(seed, 0);
  std::atomic<std::int64_t> taken{0}, bytes{0};
  std::vector<Status> results(readers);
  std::vector<std::thread> threads;
  const auto start = Clock::now();
  for (std::size_t t = 0; t < readers; ++t) {
    threads.emplace_back([&, t] {
      for (std::int64_t i = 0; results[t] && (i = taken.fetch_add(1)) < count;) {
        const double u = random.uniform(static_cast<std::uint64_t>(i));
        const auto id = static_cast<std::int32_t>(u * static_cast<double>(experts_.size()));
        for (std::int32_t p = 0; results[t] && p < pieces_[static_cast<std::size_t>(id)]; ++p)
          results[t] = read(piece(id, p), slot_memory(static_cast<std::int32_t>(t)));
        bytes.fetch_add(static_cast<std::int64_t>(experts_[static_cast<std::size_t>(id)].bytes));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = seconds_since(start);
  for (const Status& result : results) HADAL_RETURN_IF_ERROR(result);
  return static_cast<double>(bytes.load()) / seconds;
}

}  // namespace hadal
