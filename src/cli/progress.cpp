#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

namespace hadal::cli {

std::string clock_time(double seconds) {
  const auto s = static_cast<std::int64_t>(std::clamp(seconds, 0.0, 1e9));
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

Progress::Progress() : terminal_(::isatty(STDERR_FILENO) != 0) {}
Progress::~Progress() {
  clear();
}

void Progress::clear() {
  if (shown_) std::fputs("\r\033[K", stderr);
  shown_ = false;
}

void Progress::show(std::int64_t done, std::int64_t total, std::string_view text) {
  if (!terminal_ || total <= 0) return;
  const Clock::time_point now = Clock::now();
  if (first_done_ < 0) {
    first_done_ = done;
    first_time_ = now;
  } else if (now - last_time_ < std::chrono::milliseconds(100) && done < total) {
    return;
  }
  last_time_ = now;
  constexpr std::int64_t kWidth = 20;
  const auto full = static_cast<std::size_t>(kWidth * done / total);
  const double elapsed = std::chrono::duration<double>(now - first_time_).count();
  const double left = done > first_done_ ? elapsed * static_cast<double>(total - done) /
                                               static_cast<double>(done - first_done_)
                                         : 0;
  fmt::print(stderr, "\r{}/{} [{}{}] {}  {}  ETA {}\033[K", done, total, std::string(full, '='),
             std::string(static_cast<std::size_t>(kWidth) - full, ' '),
             fmt::format("{}%", 100 * done / total), text, done > first_done_ ? clock_time(left) : "-");
  std::fflush(stderr);
  shown_ = true;
}

}  // namespace hadal::cli
