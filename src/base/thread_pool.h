// The one way that hadal uses several cores: parallel_for over a range whose chunks are independent. Which
// thread runs which chunk never shows in a result, because no two chunks write the same element.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace hadal {

class ThreadPool {
 public:
  // n_threads counts the caller; 0 means all that the machine (or HADAL_THREADS, read by the cli) offers.
  // `pin` ties every thread but the caller's to a core of its own, as far as there are any.
  explicit ThreadPool(int n_threads = 0, bool pin = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) until every index of [0, n) has been covered once, in chunks of at most `grain`
  // that begin at its multiples. Every thread starts on a share of its own, one contiguous run of chunks in
  // ascending order, so that it reads what lies one behind the other as one stream; who is done takes half of
  // what another has left, from its end. Returns when all are done. The body must not throw and must not call
  // parallel_for. One caller at a time.
  template <class Body>
  void parallel_for(std::int64_t n, std::int64_t grain, Body&& body) {
    using Decayed = std::remove_reference_t<Body>;
    run(
        n, grain,
        [](void* context, std::int64_t begin, std::int64_t end) {
          (*static_cast<Decayed*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  static constexpr std::uint32_t kClosed = 1 << 15, kInside = kClosed - 1, kJob = 1 << 16;
  using Chunk = void (*)(void* context, std::int64_t begin, std::int64_t end);
  // Chunks [begin, end) that nobody has taken yet, begin in the low half. One word, so that taking from
  // either end is one compare-and-swap, and a value that comes back means the same thing again.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> range{0};
  };

  void run(std::int64_t n, std::int64_t grain, Chunk chunk, void* context);
  void work(std::size_t self);  // takes chunks of the current job until none is left
  bool steal(std::size_t self);
  void worker_main(std::size_t self);
  std::uint32_t wait_while(std::uint32_t same, std::uint32_t mask) const;

  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;  // [size()], the caller's first
  int spins_ = 0;                    // looks at a word before a thread sleeps on it
  // The gate of the job: its number in the upper half, then kClosed, then how many workers are inside. A
  // worker that comes before the gate closes goes in, one that comes later has missed the job: whoever runs
  // it never waits for a thread that the system keeps from running, unless that holds a chunk. What follows
  // is written while nobody is inside, and read inside; one cache line brings a worker all of it.
  alignas(64) std::atomic<std::uint32_t> gate_{kClosed};  // workers wait on it, and who runs a job
  std::atomic<bool> stop_{false};
  std::int64_t n_ = 0;
  std::int64_t grain_ = 1;
  Chunk chunk_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace hadal
