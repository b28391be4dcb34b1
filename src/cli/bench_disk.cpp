#include "cli/bench_disk.h"

#include <algorithm>

#include <fmt/format.h>

namespace hadal::cli {

void DiskMeter::start() {
  if (active()) before_ = cache_->statistics();
}

Status DiskMeter::measure() {
  if (!active()) return {};
  constexpr std::int64_t kReads = 24;  // of 13 MB in Flash: a third of a second at 1 GB/s
  HADAL_ASSIGN_OR_RETURN(const double rate, cache_->measure_disk(kReads, rates_.size()));
  rates_.push_back(rate);
  return {};
}

void DiskMeter::stop(double seconds) {
  if (active()) seen_ = cache_->statistics().since(before_);
  seconds_ = seconds;
}

double DiskMeter::disk_rate() const {
  std::vector<double> sorted = rates_;
  std::sort(sorted.begin(), sorted.end());
  return sorted.empty() ? 0 : sorted[sorted.size() / 2];
}

double DiskMeter::fraction() const {
  const auto necessary = static_cast<double>(seen_.miss_bytes_read + seen_.hit_bytes_read);
  return disk_rate() > 0 && seconds_ > 0 ? necessary / disk_rate() / seconds_ : 0;
}

nlohmann::ordered_json DiskMeter::json() const {
  return {{"experts_in_memory", cache_->slots_used()},
          {"hits", seen_.hits},
          {"prefetch_hits", seen_.prefetch_hits},
          {"misses", seen_.misses},
          {"bytes_read", seen_.bytes_read},
          {"necessary_bytes", seen_.miss_bytes_read + seen_.hit_bytes_read},
          {"predicted", seen_.predicted},
          {"predicted_right", seen_.predicted_right},
          {"seconds", seconds_},
          {"wait_seconds", seen_.wait_seconds},
          {"read_gbps",
           seen_.read_seconds > 0 ? static_cast<double>(seen_.bytes_read) / seen_.read_seconds / 1e9 : 0},
          {"disk_gbps", disk_rate() / 1e9},
          {"disk_fraction", fraction()},
          {"direct", cache_->direct()}};
}

std::string DiskMeter::line() const {
  const auto wanted =
      static_cast<double>(std::max<std::int64_t>(1, seen_.hits + seen_.prefetch_hits + seen_.misses));
  return fmt::format(
      "  experts: {} hits, {} read ahead, {} misses ({:.0f}% in memory); {} of {} predictions right; {:.2f} "
      "GB read in "
      "{:.1f} s; the disk gives {:.2f} GB/s: {:.0f}% of what it allows",
      seen_.hits, seen_.prefetch_hits, seen_.misses, 100 * static_cast<double>(seen_.hits) / wanted,
      seen_.predicted_right, seen_.predicted, static_cast<double>(seen_.bytes_read) / 1e9, seconds_,
      disk_rate() / 1e9, 100 * fraction());
}

}  // namespace hadal::cli
