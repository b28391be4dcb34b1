#include "base/thread_pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace hadal {
namespace {

// Gaps between the ops of a forward are bridged by spinning, about half a millisecond of it, longer ones by
// sleeping in the kernel, from which waking up takes tens of microseconds. With more threads than cores a
// thread that spins keeps another from the work that it waits for.
constexpr int kSpins = 20000;
constexpr int kSpinsWhenCrowded = 100;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::uint64_t pack(std::uint64_t begin, std::uint64_t end) {
  return begin | end << 32;
}
std::uint64_t begin_of(std::uint64_t range) {
  return range & 0xffffffff;
}
std::uint64_t end_of(std::uint64_t range) {
  return range >> 32;
}

// To the i-th of the cores that this process may use. What the kernel refuses is no loss but of speed.
void pin_to_core([[maybe_unused]] std::thread& thread, [[maybe_unused]] std::size_t i) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  const auto cores = static_cast<std::size_t>(CPU_COUNT(&allowed));
  for (std::size_t core = 0, seen = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || seen++ != i % cores) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    pthread_setaffinity_np(thread.native_handle(), sizeof(one), &one);
    return;
  }
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads, bool pin) {
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  if (n_threads <= 0) n_threads = cores;
  spins_ = n_threads <= cores ? kSpins : kSpinsWhenCrowded;
  const auto size = static_cast<std::size_t>(n_threads);
  shares_ = std::make_unique<Share[]>(size);
  workers_.reserve(size - 1);
  for (std::size_t i = 1; i < size; ++i) {
    workers_.emplace_back([this, i] { worker_main(i); });
    if (pin) pin_to_core(workers_.back(), i);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  gate_.fetch_add(kJob);
  gate_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(std::int64_t n, std::int64_t grain, Chunk chunk, void* context) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  if (workers_.empty() || n <= grain) {
    for (std::int64_t begin = 0; begin < n; begin += grain) chunk(context, begin, std::min(n, begin + grain));
    return;
  }
  n_ = n;
  grain_ = grain;
  chunk_ = chunk;
  context_ = context;
  const auto chunks = static_cast<std::uint64_t>((n - 1) / grain + 1);
  HADAL_CHECK(chunks <= std::numeric_limits<std::uint32_t>::max());
  const std::uint64_t threads = workers_.size() + 1;
  for (std::uint64_t i = 0; i < threads; ++i) {
    shares_[i].range.store(pack(i * chunks / threads, (i + 1) * chunks / threads), std::memory_order_relaxed);
  }
  const std::uint32_t job = (gate_.load(std::memory_order_relaxed) & ~(kJob - 1)) + kJob;
  gate_.store(job);  // publishes all of the above
  gate_.notify_all();
  work(0);
  // No chunk is left to take. Those inside finish theirs.
  std::uint32_t gate = gate_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
  while ((gate & kInside) != 0) gate = wait_while(gate, ~0U);
}

// Returns the gate once its bits under the mask are no longer these.
std::uint32_t ThreadPool::wait_while(std::uint32_t same, std::uint32_t mask) const {
  for (int spins = 0;; ++spins) {
    const std::uint32_t gate = gate_.load(std::memory_order_acquire);
    if ((gate & mask) != (same & mask)) return gate;
    if (spins < spins_) {
      relax();
    } else {
      gate_.wait(gate);
    }
  }
}

void ThreadPool::work(std::size_t self) {
  std::atomic<std::uint64_t>& own = shares_[self].range;
  do {
    std::uint64_t range = own.load(std::memory_order_relaxed);
    while (begin_of(range) < end_of(range)) {
      const std::uint64_t first = begin_of(range);
      if (!own.compare_exchange_weak(range, pack(first + 1, end_of(range)), std::memory_order_relaxed))
        continue;
      const std::int64_t begin = static_cast<std::int64_t>(first) * grain_;
      chunk_(context_, begin, std::min(n_, begin + grain_));
      range = own.load(std::memory_order_relaxed);
    }
  } while (steal(self));
}

// Moves half of what the next thread that has anything left has left, from its end, to one's own share, which
// is empty. False if there is nothing to be had.
bool ThreadPool::steal(std::size_t self) {
  const std::size_t threads = workers_.size() + 1;
  for (std::size_t i = 1; i < threads; ++i) {
    std::atomic<std::uint64_t>& other = shares_[(self + i) % threads].range;
    std::uint64_t range = other.load(std::memory_order_relaxed);
    while (begin_of(range) < end_of(range)) {
      const std::uint64_t middle = begin_of(range) + (end_of(range) - begin_of(range)) / 2;
      if (!other.compare_exchange_weak(range, pack(begin_of(range), middle), std::memory_order_relaxed))
        continue;
      shares_[self].range.store(pack(middle, end_of(range)), std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

void ThreadPool::worker_main(std::size_t self) {
  std::uint32_t seen = 0;
  for (;;) {
    std::uint32_t gate = wait_while(seen, ~(kJob - 1));
    if (stop_.load()) return;
    // After 2^16 jobs the numbers come again, and a worker that slept through all of them misses one more.
    seen = gate;
    bool inside = false;
    while ((gate & kClosed) == 0 && !inside)
      inside = gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire);
    if (!inside) continue;
    seen = gate;  // a later job, if that had begun meanwhile
    work(self);
    if ((gate_.fetch_sub(1, std::memory_order_release) & (kInside | kClosed)) == (kClosed | 1))
      gate_.notify_all();
  }
}

}  // namespace hadal
