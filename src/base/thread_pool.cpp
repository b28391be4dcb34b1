#include "base/thread_pool.h"

#include <algorithm>

namespace hadal {
namespace {

// Short gaps between the ops of a forward are bridged by spinning; longer ones by sleeping in the kernel.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  if (n_threads <= 0) n_threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  workers_.reserve(static_cast<std::size_t>(n_threads - 1));
  for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this] { worker_main(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
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
  next_.store(0);
  running_.store(static_cast<std::int32_t>(workers_.size()));
  epoch_.fetch_add(1);
  epoch_.notify_all();
  work();
  for (int spins = 0;; ++spins) {
    const std::int32_t running = running_.load();
    if (running == 0) return;
    if (spins < kSpins) {
      relax();
    } else {
      running_.wait(running);
    }
  }
}

void ThreadPool::work() {
  for (;;) {
    const std::int64_t begin = next_.fetch_add(grain_);
    if (begin >= n_) return;
    chunk_(context_, begin, std::min(n_, begin + grain_));
  }
}

void ThreadPool::worker_main() {
  std::uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; epoch_.load() == seen; ++spins) {
      if (spins < kSpins) {
        relax();
      } else {
        epoch_.wait(seen);
      }
    }
    ++seen;
    if (stop_.load()) return;
    work();
    if (running_.fetch_sub(1) == 1) running_.notify_all();
  }
}

}  // namespace hadal
