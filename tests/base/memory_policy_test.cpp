#include "base/memory_policy.h"

#include <sys/prctl.h>

#include <cstring>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "base/anonymous_memory.h"
#include "base/buffer.h"
#include "base/huge_pages.h"

namespace hadal {
namespace {

TEST(MemoryPolicy, NodeLists) {
  EXPECT_EQ(parse_node_list("0\n"), std::vector<int>{0});
  EXPECT_EQ(parse_node_list("0-2,5,7-8"), (std::vector<int>{0, 1, 2, 5, 7, 8}));
  for (const char* bad : {"", "a", "0-", "3-1", "0,", "0;1", "-1", "0-99999999999"})
    EXPECT_TRUE(parse_node_list(bad).empty()) << bad;
}

TEST(MemoryPolicy, Names) {
  EXPECT_EQ(*numa_policy_from_string(""), NumaPolicy::automatic);
  EXPECT_EQ(*numa_policy_from_string("off"), NumaPolicy::off);
  EXPECT_FALSE(numa_policy_from_string("on").has_value());
}

TEST(MemoryPolicy, InterleavesOverTheNodesThereAre) {
  // In a thread of its own, whose policy ends with it.
  std::thread([] {
    const int here[] = {0};
    const Status done = interleave_memory(here);
    EXPECT_TRUE(done.has_value()) << done.error().message();
    const int nowhere[] = {1023};
    EXPECT_FALSE(interleave_memory(nowhere).has_value());
  }).join();
}

TEST(MemoryPolicy, HugePagesOffHoldsForTheProcess) {
  std::string said;
  apply_memory_policy({false, NumaPolicy::off}, [&](std::string_view text) { said += text; });
  EXPECT_EQ(::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1) << said;
  apply_memory_policy({true, NumaPolicy::off}, {});
  EXPECT_EQ(::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 0);
}

TEST(AnonymousMemory, AlignedZeroAndCounted) {
  const std::int64_t before = resident_memory_bytes();
  auto memory = AnonymousMemory::map((std::size_t{64} << 20) + 5);
  ASSERT_TRUE(memory.has_value());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->data()) % kHugePage, 0U);
  EXPECT_LT(resident_memory_bytes() - before, std::int64_t{8} << 20)
      << "nothing is taken before it is touched";
  EXPECT_EQ(memory->data()[memory->size() - 1], std::byte{0});
  std::memset(memory->data(), 1, memory->size());
  EXPECT_GE(resident_memory_bytes() - before, std::int64_t{60} << 20);
  EXPECT_GE(peak_memory_bytes(), resident_memory_bytes() - (std::int64_t{1} << 20));
  EXPECT_EQ(AnonymousMemory::map(std::size_t{1} << 60).error().code(), ErrorCode::resource_exhausted);
}

TEST(Buffer, LargeOnesStartAtAHugePage) {
  const auto large = Buffer<float>::uninitialised(kHugePage);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.data()) % kHugePage, 0U);
  const auto small = Buffer<float>::uninitialised(17);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(small.data()) % 64, 0U);
}

}  // namespace
}  // namespace hadal
