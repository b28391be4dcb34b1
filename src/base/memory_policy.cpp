#include "base/memory_policy.h"

#include <malloc.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <string>

#include <fmt/format.h>

namespace hadal {
namespace {

constexpr int kInterleave = 3;  // MPOL_INTERLEAVE of <numaif.h>, which comes with libnuma
constexpr int kMostNodes = 1024;

// A line of /proc/self/status, "VmRSS:	  1234 kB", in bytes.
std::int64_t status_bytes(std::string_view field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field)) return std::strtoll(line.c_str() + field.size(), nullptr, 10) * 1024;
  }
  return 0;
}

}  // namespace

Result<NumaPolicy> numa_policy_from_string(std::string_view name) {
  if (name.empty()) return NumaPolicy::automatic;
  if (name == "interleave") return NumaPolicy::interleave;
  if (name == "off") return NumaPolicy::off;
  return fail(ErrorCode::invalid_argument, fmt::format("numa '{}': there are interleave and off", name));
}

std::vector<int> parse_node_list(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  std::vector<int> nodes;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    int first = 0, last = 0;
    auto read = std::from_chars(at, end, first);
    if (read.ec != std::errc()) return {};
    last = first;
    if (read.ptr != end && *read.ptr == '-') {
      read = std::from_chars(read.ptr + 1, end, last);
      if (read.ec != std::errc()) return {};
    }
    if (first < 0 || last < first || last >= kMostNodes) return {};
    for (int node = first; node <= last; ++node) nodes.push_back(node);
    at = read.ptr;
    if (at == end) break;
    if (*at != ',' || ++at == end) return {};
  }
  return nodes;
}

Status interleave_memory(std::span<const int> nodes) {
  constexpr int kBits = 8 * sizeof(unsigned long);
  unsigned long mask[kMostNodes / kBits] = {};
  for (const int node : nodes) mask[node / kBits] |= 1UL << (node % kBits);
  // The kernel reads one bit less than it is told.
  if (::syscall(SYS_set_mempolicy, kInterleave, mask, static_cast<unsigned long>(kMostNodes) + 1) != 0) {
    return fail(ErrorCode::io, fmt::format("cannot interleave memory over {} NUMA nodes: {}", nodes.size(),
                                           std::strerror(errno)));
  }
  return {};
}

void apply_memory_policy(const MemoryPolicy& policy, const Notice& notice) {
  const auto say = [&](std::string_view text) {
    if (notice) notice(text);
  };
  if (::prctl(PR_SET_THP_DISABLE, policy.huge_pages ? 0 : 1, 0, 0, 0) != 0 && !policy.huge_pages)
    say(fmt::format("huge pages stay as the system has them: {}", std::strerror(errno)));
  if (policy.numa == NumaPolicy::off) return;
  std::ifstream online("/sys/devices/system/node/online");
  std::string text;
  std::getline(online, text);
  const std::vector<int> nodes = parse_node_list(text);
  if (nodes.size() < 2) {
    if (policy.numa == NumaPolicy::interleave) say("one NUMA node: nothing to interleave");
    return;
  }
  if (const Status done = interleave_memory(nodes); !done) say(done.error().message());
}

std::int64_t resident_memory_bytes() {
  return status_bytes("VmRSS:");
}
std::int64_t peak_memory_bytes() {
  return status_bytes("VmHWM:");
}

void release_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace hadal
