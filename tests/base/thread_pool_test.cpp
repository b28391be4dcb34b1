#include "base/thread_pool.h"

#include <chrono>
#include <mutex>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

namespace hadal {
namespace {

using namespace std::chrono_literals;

// Waits until `done` says so; false after a time that only a hang reaches.
template <class Done>
bool wait_for(Done&& done) {
  const auto give_up = std::chrono::steady_clock::now() + 30s;
  while (!done()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(ThreadPool, CoversEveryIndexOnceInChunksOfTheGrain) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const std::int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (const std::int64_t grain : {1, 3, 16, 2000}) {
        std::vector<int> times(static_cast<std::size_t>(n));
        std::atomic<int> wrong{0};
        pool.parallel_for(n, grain, [&](std::int64_t begin, std::int64_t end) {
          if (begin % grain != 0 || end != std::min(n, begin + grain)) ++wrong;
          for (std::int64_t i = begin; i < end; ++i) ++times[static_cast<std::size_t>(i)];
        });
        EXPECT_EQ(wrong, 0);
        for (const int t : times) EXPECT_EQ(t, 1) << n << " by " << grain << " on " << threads;
      }
    }
  }
}

TEST(ThreadPool, WhatAJobWroteTheNextOneReads) {
  // Neighbours are written by different threads from one job to the next; ThreadSanitizer watches.
  ThreadPool pool(4);
  const std::int64_t n = 257;
  std::vector<std::int64_t> a(n), b(n);
  std::iota(a.begin(), a.end(), 0);
  const int rounds = 2000;
  for (int round = 0; round < rounds; ++round) {
    pool.parallel_for(n, 1 + round % 5, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        b[static_cast<std::size_t>(i)] = a[static_cast<std::size_t>((i + 1) % n)];
    });
    std::swap(a, b);
  }
  for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(a[static_cast<std::size_t>(i)], (i + rounds) % n);
}

TEST(ThreadPool, ThreadsStartOnContiguousShares) {
  ThreadPool pool(2);
  std::mutex mutex;
  std::set<std::thread::id> arrived;
  std::set<std::int64_t> first;
  bool met = true;
  pool.parallel_for(16, 1, [&](std::int64_t begin, std::int64_t) {
    {
      const std::lock_guard lock(mutex);
      if (arrived.insert(std::this_thread::get_id()).second) first.insert(begin);
    }
    // Nobody goes on to a second chunk before both have their first.
    if (!wait_for([&] {
          const std::lock_guard lock(mutex);
          return arrived.size() == 2;
        })) {
      met = false;
    }
  });
  EXPECT_TRUE(met);
  EXPECT_EQ(first, (std::set<std::int64_t>{0, 8}));
}

TEST(ThreadPool, IdleThreadsTakeWhatABusyOneHasLeft) {
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    std::atomic<int> done{0};
    std::atomic<bool> finished{true};
    pool.parallel_for(64, 1, [&](std::int64_t begin, std::int64_t) {
      if (begin == 0) finished = wait_for([&] { return done == 63; });  // the whole rest must go elsewhere
      ++done;
    });
    EXPECT_TRUE(finished) << threads;
    EXPECT_EQ(done, 64);
  }
}

TEST(ThreadPool, WakesUpFromSleep) {
  ThreadPool pool(3, true);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(5ms);  // longer than anybody spins
    std::atomic<std::int64_t> sum{0};
    pool.parallel_for(100, 1, [&](std::int64_t begin, std::int64_t) { sum += begin; });
    EXPECT_EQ(sum, 4950);
  }
}

}  // namespace
}  // namespace hadal
