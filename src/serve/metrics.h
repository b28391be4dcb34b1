// What Prometheus scrapes at /metrics: vLLM's names under hadal's prefix, so that its dashboards need one
// sed.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "engine/disk_cache.h"
#include "engine/scheduler.h"

namespace hadal::serve {

struct TurnReport;

class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void add(double value);
  void print(std::string& out, std::string_view name, std::string_view help) const;

 private:
  std::vector<double> bounds_;
  std::vector<std::int64_t> counts_;
  double sum_ = 0;
};

class Metrics {
 public:
  void add(const TurnReport& report, std::int64_t max_tokens);
  void add_response(std::string_view route, int status);
  std::string print(const SchedulerStats& scheduler, const DiskCache::Stats* disk, std::int64_t connections,
                    std::string_view model) const;

 private:
  static std::vector<double> seconds();
  static std::vector<double> tokens();

  mutable std::mutex mutex_;
  Histogram first_token_{seconds()}, inter_token_{seconds()}, whole_{seconds()}, queue_{seconds()},
      prefill_{seconds()}, decode_{seconds()}, inference_{seconds()};
  Histogram prompt_tokens_{tokens()}, generated_tokens_{tokens()}, max_tokens_{tokens()};
  std::map<std::string, std::int64_t, std::less<>> finished_;
  std::map<std::string, std::int64_t, std::less<>> responses_;
};

}  // namespace hadal::serve
