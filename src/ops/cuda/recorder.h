// The work of a device, written down before it is done: ops record kernel launches and the host data that
// they will read, flush() sends both. A decode step records what the step before recded, but for that data;
// it is then a replay of one CUDA graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <set>
#include <span>
#include <type_traits>
#include <vector>

#include <cuda_runtime_api.h>

#include "base/memory.h"

namespace hadal::cuda {

// Ends the process, naming the call, when the device or the driver fails: no op can go on without it.
void check(cudaError_t status, const char* call);

// cudaMalloc in slabs, handed out again without returning to the driver. All use is in one stream's order, so
// memory may be reused as soon as it is released.
class DeviceMemory final : public Memory {
 public:
  DeviceMemory();
  ~DeviceMemory() override;
  bool on_host() const override { return false; }
  std::size_t available() const override;
  std::byte* allocate(std::size_t bytes) override;
  void release(std::byte* at, std::size_t bytes) override;
  void clear(std::byte* at, std::size_t bytes) override;
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override;
  void write(std::byte* to, const void* from_host, std::size_t bytes) override;
  void read(void* to_host, const std::byte* from, std::size_t bytes) override;

  cudaStream_t stream() const { return stream_; }
  // Called before anything else goes to the stream: sends what is recorded.
  void set_flush(std::function<void()> flush) { flush_ = std::move(flush); }

 private:
  void flush() {
    if (flush_) flush_();
  }

  cudaStream_t stream_ = nullptr;
  std::function<void()> flush_;
  std::map<std::size_t, std::vector<std::byte*>> free_;  // by size
  std::vector<void*> slabs_;
  std::byte* slab_ = nullptr;
  std::size_t slab_left_ = 0;
  std::byte* pinned_ = nullptr;  // what host memory passes through
};

// Memory that a kernel reads or writes. Weights and staged data, which no kernel writes, are left out.
struct Range {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;

  bool overlaps(const Range& other) const { return begin < other.end && other.begin < end; }
};
template <class T>
Range range(const T* data, std::int64_t count) {
  const auto* begin = reinterpret_cast<const std::byte*>(data);
  return {begin, begin + static_cast<std::size_t>(count) * sizeof(T)};
}
// Stands for the rows of all sequences, which are told apart by nobody.
Range sequence_rows();

class Recorder {
 public:
  explicit Recorder(DeviceMemory& memory);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // One launch of a kernel that takes one struct of arguments. What it reads and writes decides which kernels
  // may run beside it.
  template <class Args>
  void launch(void (*kernel)(Args), dim3 grid, unsigned threads, std::size_t shared, const Args& args,
              std::initializer_list<Range> reads, std::initializer_list<Range> writes) {
    static_assert(std::is_trivially_copyable_v<Args>);
    std::byte* to =
        add(reinterpret_cast<const void*>(kernel), grid, threads, shared, sizeof(Args), reads, writes);
    std::memcpy(to, &args, sizeof(Args));
  }

  // A form of `source` in `place` that a kernel has made, known by `key` until one of the two is written.
  struct Derived {
    Range source, place;
    std::uint64_t key = 0;
    std::int64_t columns = 0;
  };
  const Derived* find_derived(const Range& source, std::uint64_t key, std::int64_t columns) const;
  void add_derived(const Derived& derived) { derived_.push_back(derived); }

  // Whether so much is staged that the next op might find no room.
  bool full() const { return staged_ > kStaging / 2; }
  // Where kernels will find a copy of host data. Data equal to some that was staged lately is kept once.
  template <class T>
  const T* stage(std::span<const T> data) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<const T*>(stage_bytes(data.data(), data.size_bytes()));
  }

  // At least so many bytes of the device, whose contents last until the next op takes the same slot. Slots
  // keep their places from one recording to the next.
  std::byte* scratch(std::size_t slot, std::size_t bytes);
  // The same of a few slots that take turns, so that what is in one may still be read beside the next.
  std::byte* next_scratch(std::size_t bytes);

  // Sends what was recorded; returns before it is done.
  void flush();

 private:
  struct Command {
    const void* kernel;
    dim3 grid;
    std::uint32_t threads, shared, args_at;
    std::uint32_t ranges, reads, writes;  // in ranges_: first those it reads
  };
  // What was recorded, to compare; and from the second time on the graph that does it.
  struct Graph {
    std::vector<Command> commands;
    std::vector<std::byte> args;
    cudaGraphExec_t exec = nullptr;
    std::uint64_t used = 0;
  };
  struct Staged {
    std::size_t at, bytes;
  };
  static constexpr std::size_t kStaging = std::size_t{64} << 20;
  static constexpr std::size_t kGraphs = 32;
  static constexpr std::size_t kTurns = 6, kFirstTurn = 16;  // slots of next_scratch

  std::byte* add(const void* kernel, dim3 grid, unsigned threads, std::size_t shared, std::size_t args,
                 std::initializer_list<Range> reads, std::initializer_list<Range> writes);
  bool must_wait(const Command& later, const Command& earlier) const;
  cudaGraphExec_t make_graph();
  const void* stage_bytes(const void* data, std::size_t bytes);
  void send();
  Graph* find_graph();

  DeviceMemory& memory_;
  std::vector<Command> commands_;
  std::vector<std::byte> args_;
  std::vector<Range> ranges_;
  std::vector<Derived> derived_;
  std::byte* host_ = nullptr;    // staged data, pinned,
  std::byte* device_ = nullptr;  // and where it goes
  std::size_t staged_ = 0;
  std::vector<Staged> entries_;
  cudaEvent_t uploaded_ = nullptr;
  bool uploading_ = false;
  std::vector<MemoryBlock> scratch_;
  std::size_t turn_ = 0;
  std::vector<Graph> graphs_;
  std::set<const void*> allowed_;  // kernels that have asked for more shared memory
  std::uint64_t flushes_ = 0;
};

}  // namespace hadal::cuda
