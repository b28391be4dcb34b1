// A progress bar on stderr, and none where stderr is not a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace hadal::cli {

class Progress {
 public:
  Progress();
  ~Progress();  // leaves the line empty
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // "120/5000 [===>      ] 2%  <text>  ETA 1:02:30", at most ten times a second. The time left is that of the
  // pace since the first call.
  void show(std::int64_t done, std::int64_t total, std::string_view text);
  // Something else is about to be printed.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool terminal_;
  bool shown_ = false;
  std::int64_t first_done_ = -1;
  Clock::time_point first_time_, last_time_;
};

// 3723 -> "1:02:03"
std::string clock_time(double seconds);

}  // namespace hadal::cli
