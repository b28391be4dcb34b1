// The ranks of a job as threads of one process: what MPI does, where there is none.
#pragma once

#include <algorithm>
#include <barrier>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "dist/communicator.h"

namespace hadal::test {

class ThreadRanks {
 public:
  explicit ThreadRanks(int size)
      : barrier_(size), shown_(static_cast<std::size_t>(size)), mail_(shown_.size()) {
    for (int r = 0; r < size; ++r) ranks_.push_back(std::make_unique<Rank>(*this, r));
  }

  // body(communicator) on every rank at once.
  template <class Body>
  void run(const Body& body) {
    std::vector<std::thread> threads;
    for (const auto& rank : ranks_) threads.emplace_back([&body, r = rank.get()] { body(*r); });
    for (std::thread& thread : threads) thread.join();
  }

 private:
  // What a rank lets the others look at during a call.
  struct Shown {
    const void* data = nullptr;
    std::span<const std::int64_t> rows;
    std::size_t bytes = 0;
  };

  class Rank final : public Communicator {
   public:
    Rank(ThreadRanks& all, int rank) : all_(all), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return static_cast<int>(all_.ranks_.size()); }
    int local_size() const override { return size(); }

    void sum_to_owners(std::span<const Shard> shards, float* values) override {
      meet({values, {}, 0}, [&] {
        for (const Shard& s : shards) {
          if (s.owner != rank_) continue;
          for (std::int64_t i = s.offset; i < s.offset + s.size; ++i) {
            float sum = of(0)[i];
            for (int r = 1; r < size(); ++r) sum += of(r)[i];
            values[i] = sum;
          }
        }
      });
    }
    void share(std::span<const Shard> shards, float* values) override {
      meet({values, {}, 0}, [&] {
        for (const Shard& s : shards)
          if (s.owner != rank_) std::copy_n(of(s.owner) + s.offset, s.size, values + s.offset);
      });
    }
    void exchange_rows(std::span<const std::int64_t> send, const void* sent,
                       std::span<const std::int64_t> receive, void* received,
                       std::int64_t row_bytes) override {
      meet({sent, send, 0}, [&] {
        auto* to = static_cast<std::byte*>(received);
        for (std::size_t r = 0; r < receive.size(); ++r) {
          const Shown& from = all_.shown_[r];
          const auto own = static_cast<std::size_t>(rank_);
          EXPECT_EQ(from.rows[own], receive[r]);
          std::int64_t first = 0;
          for (std::size_t i = 0; i < own; ++i) first += from.rows[i];
          to = std::copy_n(static_cast<const std::byte*>(from.data) + first * row_bytes,
                           receive[r] * row_bytes, to);
        }
      });
    }
    void to_first(int owner, std::span<const std::byte> sent, std::span<std::byte> received) override {
      if (rank_ != owner && rank_ != 0) return;
      std::unique_lock lock(all_.mutex_);
      auto& mail = all_.mail_[static_cast<std::size_t>(owner)];
      if (rank_ == owner) {
        mail.emplace_back(sent.begin(), sent.end());
        all_.posted_.notify_all();
        return;
      }
      all_.posted_.wait(lock, [&] { return !mail.empty(); });
      ASSERT_EQ(mail.front().size(), received.size());
      std::copy(mail.front().begin(), mail.front().end(), received.begin());
      mail.pop_front();
    }
    std::vector<std::vector<std::byte>> gather_bytes(std::span<const std::byte> mine) override {
      std::vector<std::vector<std::byte>> parts;
      meet({mine.data(), {}, mine.size()}, [&] {
        for (const Shown& theirs : all_.shown_) {
          const auto* data = static_cast<const std::byte*>(theirs.data);
          parts.emplace_back(data, data + theirs.bytes);
        }
      });
      return parts;
    }

   private:
    const float* of(int rank) const {
      return static_cast<const float*>(all_.shown_[static_cast<std::size_t>(rank)].data);
    }
    template <class Look>
    void meet(const Shown& mine, Look&& look) {
      all_.shown_[static_cast<std::size_t>(rank_)] = mine;
      all_.barrier_.arrive_and_wait();
      look();
      all_.barrier_.arrive_and_wait();
    }

    ThreadRanks& all_;
    int rank_;
  };

  std::barrier<> barrier_;
  std::vector<Shown> shown_;
  std::mutex mutex_;
  std::condition_variable posted_;
  std::vector<std::deque<std::vector<std::byte>>> mail_;  // to the first, by sender
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace hadal::test
