// How the kernel backs this process's memory: huge pages, and interleaving over NUMA nodes.
//
// Both are set once for the process and the threads it will start, not per allocation, since interleaving
// must also cover the page cache behind mapped weights, which belongs to whoever faults it in.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "base/log.h"

namespace hadal {

enum class NumaPolicy : std::uint8_t {
  automatic,   // interleave where there is more than one node
  interleave,  // the same, and say so where there is only one
  off,         // as the system places it: on the node of the thread that touches it first
};

// "interleave", "off", or nothing for automatic.
Result<NumaPolicy> numa_policy_from_string(std::string_view name);

struct MemoryPolicy {
  bool huge_pages = true;  // false: none in this process, not even where MADV_HUGEPAGE asks for them
  NumaPolicy numa = NumaPolicy::automatic;
};

// To be called before threads are started and memory is taken. What the system refuses is said and left.
void apply_memory_policy(const MemoryPolicy& policy, const Notice& notice);

// "0-1,4" -> {0, 1, 4}, as in /sys/devices/system/node/online; empty if it is not such a list.
std::vector<int> parse_node_list(std::string_view text);
// Pages taken from now on by this thread, and threads started by it, alternate between `nodes`.
Status interleave_memory(std::span<const int> nodes);

// Resident memory of this process now (VmRSS), and the most it ever was (VmHWM), in bytes; both count mapped
// files as far as they were touched.
std::int64_t resident_memory_bytes();
std::int64_t peak_memory_bytes();

// Gives back to the system what is free in the heap. glibc by itself keeps a free stretch as long as anything behind it
// is in use, and where long-lived pieces come and go in any order that can be several times as much as is in use.
void release_free_memory();

}  // namespace hadal
