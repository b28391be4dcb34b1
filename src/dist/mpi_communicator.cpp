// The one file that knows MPI (CMake switch HADAL_MPI).
#include <cstdlib>

#include <fmt/format.h>

#include "base/check.h"
#include "dist/communicator.h"

#ifdef HADAL_WITH_MPI
#define OMPI_SKIP_MPICXX 1
#include <algorithm>
#include <limits>

#include <mpi.h>
#endif

namespace hadal {
namespace {

// How many processes the launcher started this one with.
int job_size() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    if (const char* size = std::getenv(name); size != nullptr) return std::atoi(size);
  }
  return 1;
}

#ifdef HADAL_WITH_MPI

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    int threads = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm local;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local);
    MPI_Comm_size(local, &local_size_);
    MPI_Comm_free(&local);
  }
  ~MpiCommunicator() override { MPI_Finalize(); }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }

  // Every rank sends each owner its part of that owner's shards, and the owner adds them up.
  void sum_to_owners(std::span<const Shard> shards, float* values) override {
    const Layout all = layout(shards);
    std::vector<float> sent(all.total);
    copy_out(shards, values, all, sent, -1);
    const auto mine = static_cast<std::size_t>(all.counts[static_cast<std::size_t>(rank_)]);
    std::vector<float> received(mine * static_cast<std::size_t>(size_));
    std::vector<int> counts(static_cast<std::size_t>(size_), static_cast<int>(mine)), begins;
    for (int r = 0; r < size_; ++r) begins.push_back(checked(static_cast<std::size_t>(r) * mine));
    MPI_Alltoallv(sent.data(), all.counts.data(), all.begins.data(), MPI_FLOAT, received.data(),
                  counts.data(), begins.data(), MPI_FLOAT, MPI_COMM_WORLD);
    std::size_t at = 0;
    for (const Shard& s : shards) {
      if (s.owner != rank_) continue;
      for (std::int64_t i = 0; i < s.size; ++i, ++at) {
        float sum = received[at];
        for (std::size_t r = 1; r < static_cast<std::size_t>(size_); ++r) sum += received[r * mine + at];
        values[s.offset + i] = sum;
      }
    }
  }

  void share(std::span<const Shard> shards, float* values) override {
    const Layout all = layout(shards);
    std::vector<float> received(all.total);
    const auto own = static_cast<std::size_t>(rank_);
    copy_out(shards, values, all, received, rank_);
    MPI_Allgatherv(MPI_IN_PLACE, all.counts[own], MPI_FLOAT, received.data(), all.counts.data(),
                   all.begins.data(), MPI_FLOAT, MPI_COMM_WORLD);
    std::vector<int> next = all.begins;
    for (const Shard& s : shards) {
      int& at = next[static_cast<std::size_t>(s.owner)];
      if (s.owner != rank_) std::copy_n(received.data() + at, s.size, values + s.offset);
      at += static_cast<int>(s.size);
    }
  }

  // Counted in rows, so that MPI's int does not limit the bytes.
  void exchange_rows(std::span<const std::int64_t> send, const void* sent,
                     std::span<const std::int64_t> receive, void* received, std::int64_t row_bytes) override {
    const Rows to(send), from(receive);
    MPI_Datatype row;
    MPI_Type_contiguous(checked(static_cast<std::size_t>(row_bytes)), MPI_BYTE, &row);
    MPI_Type_commit(&row);
    MPI_Alltoallv(sent, to.counts.data(), to.begins.data(), row, received, from.counts.data(),
                  from.begins.data(), row, MPI_COMM_WORLD);
    MPI_Type_free(&row);
  }

  void to_first(int owner, std::span<const std::byte> sent, std::span<std::byte> received) override {
    constexpr std::size_t kMost = std::size_t{1} << 30;
    if (rank_ == owner) {
      for (; !sent.empty(); sent = sent.subspan(std::min(sent.size(), kMost)))
        MPI_Send(sent.data(), checked(std::min(sent.size(), kMost)), MPI_BYTE, 0, 0, MPI_COMM_WORLD);
    } else if (rank_ == 0) {
      for (; !received.empty(); received = received.subspan(std::min(received.size(), kMost)))
        MPI_Recv(received.data(), checked(std::min(received.size(), kMost)), MPI_BYTE, owner, 0,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
  }

  std::vector<std::vector<std::byte>> gather_bytes(std::span<const std::byte> mine) override {
    const int size = checked(mine.size());
    std::vector<int> sizes(static_cast<std::size_t>(size_)), begins;
    MPI_Allgather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, MPI_COMM_WORLD);
    std::size_t total = 0;
    for (const int n : sizes) {
      begins.push_back(checked(total));
      total += static_cast<std::size_t>(n);
    }
    std::vector<std::byte> all(total);
    MPI_Allgatherv(mine.data(), size, MPI_BYTE, all.data(), sizes.data(), begins.data(), MPI_BYTE,
                   MPI_COMM_WORLD);
    std::vector<std::vector<std::byte>> parts;
    for (std::size_t r = 0; r < sizes.size(); ++r) {
      const auto begin = all.begin() + begins[r];
      parts.emplace_back(begin, begin + sizes[r]);
    }
    return parts;
  }

 private:
  // Rows by rank, as MPI wants them.
  struct Rows {
    explicit Rows(std::span<const std::int64_t> rows) {
      std::size_t total = 0;
      for (const std::int64_t n : rows) {
        counts.push_back(checked(static_cast<std::size_t>(n)));
        begins.push_back(checked(total));
        total += static_cast<std::size_t>(n);
      }
    }
    std::vector<int> counts, begins;  // [ranks]
  };
  // All shards, those of an owner one behind the other, in the order of owners.
  struct Layout {
    std::vector<int> counts, begins;  // [ranks]
    std::size_t total = 0;
  };
  Layout layout(std::span<const Shard> shards) const {
    Layout all;
    all.counts.resize(static_cast<std::size_t>(size_));
    for (const Shard& s : shards) {
      int& count = all.counts[static_cast<std::size_t>(s.owner)];
      count = checked(static_cast<std::size_t>(count) + static_cast<std::size_t>(s.size));
    }
    for (const int count : all.counts) {
      all.begins.push_back(checked(all.total));
      all.total += static_cast<std::size_t>(count);
    }
    return all;
  }
  // Of one owner, or of all (-1).
  static void copy_out(std::span<const Shard> shards, const float* values, const Layout& all,
                       std::vector<float>& to, int owner) {
    std::vector<int> next = all.begins;
    for (const Shard& s : shards) {
      int& at = next[static_cast<std::size_t>(s.owner)];
      if (owner < 0 || s.owner == owner) std::copy_n(values + s.offset, s.size, to.data() + at);
      at += static_cast<int>(s.size);
    }
  }
  // MPI 3 counts in int.
  static int checked(std::size_t n) {
    HADAL_CHECK(n <= static_cast<std::size_t>(std::numeric_limits<int>::max()));
    return static_cast<int>(n);
  }

  int rank_ = 0, size_ = 1, local_size_ = 1;
};

#endif

}  // namespace

Result<std::unique_ptr<Communicator>> connect() {
  const int processes = job_size();
  if (processes <= 1) return std::make_unique<Alone>();
#ifdef HADAL_WITH_MPI
  return std::make_unique<MpiCommunicator>();
#else
  return fail(ErrorCode::unsupported,
              fmt::format("one of {} processes, but this hadal was built without MPI; configure it with "
                          "-DHADAL_MPI=ON",
                          processes));
#endif
}

}  // namespace hadal
