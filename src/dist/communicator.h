// The processes that train one model together. What they add up, they add in ascending order of ranks, so
// every rank has the same bits, again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include <hadal/error.h>

namespace hadal {

// values[offset, offset + size) of a set of numbers that all ranks have alike, and the rank that keeps it.
struct Shard {
  std::int64_t offset = 0, size = 0;
  int owner = 0;
};

// All ranks make the same calls in the same order. A rank that ends without the others (a crash, an exit)
// ends them all: MPI's launcher sees to that.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_size() const = 0;  // ranks on this machine

  // Shards become the sum over the ranks at their owners; elsewhere they are what they were.
  virtual void sum_to_owners(std::span<const Shard> shards, float* values) = 0;
  // Shards become what their owners have.
  virtual void share(std::span<const Shard> shards, float* values) = 0;
  // Rows of `row_bytes` to every rank and from every rank, all to all: sent [sum of send, row_bytes], those
  // to rank 0 first; received [sum of receive, row_bytes], those of rank 0 first. send, receive: rows,
  // [size()].
  virtual void exchange_rows(std::span<const std::int64_t> send, const void* sent,
                             std::span<const std::int64_t> receive, void* received,
                             std::int64_t row_bytes) = 0;
  // The bytes of one rank, not the first, to the first: `sent` there, `received` here, of the same size. For
  // all others it does nothing.
  virtual void to_first(int owner, std::span<const std::byte> sent, std::span<std::byte> received) = 0;
  // The bytes of each rank, in the order of ranks.
  virtual std::vector<std::vector<std::byte>> gather_bytes(std::span<const std::byte> mine) = 0;

  template <class T>
  std::vector<std::vector<T>> gather(std::span<const T> mine) {
    std::vector<std::vector<T>> all;
    for (const std::vector<std::byte>& bytes : gather_bytes(std::as_bytes(mine))) {
      std::vector<T>& values = all.emplace_back(bytes.size() / sizeof(T));
      if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    }
    return all;
  }
};

// This process alone.
class Alone final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_size() const override { return 1; }
  void sum_to_owners(std::span<const Shard>, float*) override {}
  void share(std::span<const Shard>, float*) override {}
  void exchange_rows(std::span<const std::int64_t> send, const void* sent, std::span<const std::int64_t>,
                     void* received, std::int64_t row_bytes) override {
    const auto bytes = static_cast<std::size_t>(send[0] * row_bytes);
    if (bytes > 0) std::memcpy(received, sent, bytes);
  }
  void to_first(int, std::span<const std::byte>, std::span<std::byte>) override {}
  std::vector<std::vector<std::byte>> gather_bytes(std::span<const std::byte> mine) override {
    return {{mine.begin(), mine.end()}};
  }
};

// Started by mpirun: all processes of the job; otherwise Alone. To be called once in a process. Error:
// unsupported, for one of several processes of a job if hadal was built without MPI.
Result<std::unique_ptr<Communicator>> connect();

// The error of the lowest rank that has one, on every rank; success if none has.
Status agree(Communicator& communicator, const Status& mine);

// Deals out pieces of work, the costly ones first, each to the rank that has least so far: the owner of each.
// `load`: what each rank has to do already; empty: nothing.
std::vector<int> deal_out(std::span<const double> costs, int ranks, std::vector<double> load = {});

}  // namespace hadal
