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
  explicit ThreadPool(int n_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) until every index of [0, n) has been covered once, in chunks of at most `grain`.
  // Returns when all are done. The body must not throw and must not call parallel_for. One caller at a time.
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
  using Chunk = void (*)(void* context, std::int64_t begin, std::int64_t end);

  void run(std::int64_t n, std::int64_t grain, Chunk chunk, void* context);
  void work();  // takes chunks of the current job until none is left
  void worker_main();

  std::vector<std::thread> workers_;
  std::atomic<std::uint32_t> epoch_{0};   // one more for every job; workers wait on it
  std::atomic<std::int64_t> next_{0};     // first index not yet taken
  std::atomic<std::int32_t> running_{0};  // workers that have not finished the current job
  std::atomic<bool> stop_{false};
  // The job, written before epoch_ is raised and read after:
  std::int64_t n_ = 0;
  std::int64_t grain_ = 1;
  Chunk chunk_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace hadal
