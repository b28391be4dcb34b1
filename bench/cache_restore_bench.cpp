// How long a prefix of V4-Flash's size takes to come back from disk, beside what the disk gives to a plain
// read of the same file, in turns; both with the file out of the page cache, and the former with it there.
//
//     cache_restore_bench [TOKENS] [DIR]      100000 tokens in a directory made below . unless said otherwise
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "base/rng.h"
#include "engine/disk_cache.h"

namespace hadal {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The kernel forgets the file's pages, which are on disk by now.
void forget(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) std::perror(path.c_str());
  ::close(fd);
}

double read_plainly(const std::filesystem::path& path) {
  std::vector<char> buffer(std::size_t{4} << 20);
  const auto start = Clock::now();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  while (::read(fd, buffer.data(), buffer.size()) > 0) {
  }
  ::close(fd);
  return since(start);
}

class Restorer {
 public:
  explicit Restorer(DiskCache& cache) : cache_(cache) {
    cache_.set_wake([this] {
      const std::lock_guard lock(mutex_);
      ready_ = true;
      woken_.notify_all();
    });
  }
  // Seconds until the state is there; negative if it is not.
  double operator()(std::uint64_t id) {
    const auto start = Clock::now();
    cache_.load(id);
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        woken_.wait(lock, [this] { return ready_; });
        ready_ = false;
      }
      for (const DiskResult& result : cache_.poll()) {
        if (result.id == id) return result.kind == DiskResult::Kind::loaded ? since(start) : -1;
      }
    }
  }

 private:
  DiskCache& cache_;
  std::mutex mutex_;
  std::condition_variable woken_;
  bool ready_ = false;
};

int run(std::int64_t n_tokens, const std::filesystem::path& directory) {
  const Config config = preset_config("flash").value();
  const StateLayout layout(config, StateFormat::compact);
  SequenceState state(layout);
  state.fill_synthetic(n_tokens, 1);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(n_tokens), 7);
  DiskCacheOptions options;
  options.directory = directory;
  options.budget_bytes = std::int64_t{1} << 50;
  options.notice = [](std::string_view line) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  };
  auto cache = DiskCache::open(layout, options);
  if (!cache) {
    std::fprintf(stderr, "%s\n", cache.error().message().c_str());
    return 1;
  }
  const std::uint64_t id = (*cache)->new_id();
  (*cache)->store(id, 0, std::string(32, 'x'), tokens, std::move(state));
  (*cache)->flush();
  (void)(*cache)->poll();
  const std::filesystem::path path = directory / cache_file_name(id);
  std::error_code error;
  const auto bytes = static_cast<double>(std::filesystem::file_size(path, error));
  if (error) return 1;
  std::printf("%lld tokens of V4-Flash, compact rows: %.0f MB\n", static_cast<long long>(n_tokens),
              bytes / 1e6);
  Restorer restore(**cache);
  std::vector<double> plain, cold, warm;
  for (int i = 0; i < 5; ++i) {
    forget(path);
    plain.push_back(read_plainly(path));
    forget(path);
    cold.push_back(restore(id));
    warm.push_back(restore(id));
    if (cold.back() < 0 || warm.back() < 0) return 1;
  }
  const auto show = [bytes](const char* what, std::vector<double> seconds) {
    std::sort(seconds.begin(), seconds.end());
    std::printf("%-28s %6.2f s, %5.2f GB/s (of 5: %.2f to %.2f)\n", what, seconds[2],
                bytes / seconds[2] / 1e9, seconds.front(), seconds.back());
    return seconds[2];
  };
  const double disk = show("the file, read plainly", plain), from_disk = show("restored from disk", cold);
  show("restored from the page cache", warm);
  std::printf("restored at %.0f %% of the disk's rate\n", 100 * disk / from_disk);
  return 0;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  const std::filesystem::path directory =
      std::filesystem::path(argc > 2 ? argv[2] : ".") / ("hadal-restore-" + std::to_string(::getpid()));
  const int code = hadal::run(argc > 1 ? std::atoll(argv[1]) : 100'000, directory);
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return code;
}
