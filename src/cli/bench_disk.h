// What `hadal bench --memory` says about the disk beside each row: what the cache of experts did during the
// timed forwards, and what the disk gives when it has nothing else to do, measured between them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <hadal/error.h>

#include "model/expert_cache.h"

namespace hadal::cli {

class DiskMeter {
 public:
  // Without a cache (null) nothing is measured.
  explicit DiskMeter(ExpertCache* cache) : cache_(cache) {}

  bool active() const { return cache_ != nullptr; }
  void start();               // the timed forwards begin
  Status measure();           // between forwards: random reads of whole experts
  void stop(double seconds);  // they took so long in sum

  // The share of what the disk allows: the time that the necessary reads (misses and right predictions; wrong
  // ones are not counted in our favour) take at the measured rate, over the time that the forwards took.
  double fraction() const;
  nlohmann::ordered_json json() const;
  std::string line() const;

 private:
  double disk_rate() const;  // bytes per second, the median

  ExpertCache* cache_;
  ExpertCache::Statistics before_, seen_;
  std::vector<double> rates_;
  double seconds_ = 0;
};

}  // namespace hadal::cli
