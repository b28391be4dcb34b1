// Blocks of slabs are as good as any, and their memory goes back.
#include "base/slab_memory.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace hadal {
namespace {

bool in_slabs() {
  SlabMemory memory;
  const auto block = MemoryBlock::uninitialised(64, memory);
  return memory.slab_bytes() > 0;
}

TEST(SlabMemoryTest, BlocksAreAlignedAndApart) {
  SlabMemory memory;
  std::mt19937 random(1);
  std::vector<std::pair<MemoryBlock, std::byte>> blocks;
  for (int i = 0; i < 500; ++i) {
    const std::size_t bytes = std::vector<std::size_t>{1, 64, 65, 4000, 100'000, 1'100'000}[random() % 6];
    if (random() % 3 == 0 && !blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      blocks.pop_back();
    }
    if (blocks.size() > 50) continue;
    blocks.emplace_back(MemoryBlock::uninitialised(bytes, memory), static_cast<std::byte>(i));
    auto& [block, mark] = blocks.back();
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(block.data()) % 64, 0U);
    std::ranges::fill(block.span(), mark);
  }
  for (const auto& [block, mark] : blocks)
    ASSERT_EQ(std::ranges::count(block.span(), mark), static_cast<std::ptrdiff_t>(block.size()));
}

TEST(SlabMemoryTest, WhatIsFreeGoesBackAndFreePlacesAreUsedAgain) {
  if (!in_slabs()) GTEST_SKIP() << "a sanitizer owns the allocator";
  SlabMemory memory;
  constexpr std::size_t kBytes = 100'000;
  std::vector<MemoryBlock> blocks;
  blocks.reserve(1000);
  for (int i = 0; i < 1000; ++i) blocks.push_back(MemoryBlock::uninitialised(kBytes, memory));
  const std::size_t full = memory.slab_bytes();
  EXPECT_LE(full, 1000 * (kBytes + 64) + SlabMemory::kSlab) << "no more than the last slab is idle";

  // Half of them at random, and as many new ones: nothing more is taken.
  std::ranges::shuffle(blocks, std::mt19937(2));
  for (int round = 0; round < 20; ++round) {
    blocks.resize(500);
    while (blocks.size() < 1000) blocks.push_back(MemoryBlock::uninitialised(kBytes, memory));
    std::ranges::shuffle(blocks, std::mt19937(static_cast<unsigned>(round)));
    ASSERT_EQ(memory.slab_bytes(), full);
  }
  blocks.clear();
  EXPECT_GT(memory.slab_bytes(), 0U) << "one is kept for the next block";
  EXPECT_LE(memory.slab_bytes(), SlabMemory::kSlab);
}

TEST(SlabMemoryTest, LargeBlocksAreNotItsOwn) {
  SlabMemory memory;
  const auto block = MemoryBlock::zeros(SlabMemory::kLargest + 1, memory);
  EXPECT_EQ(memory.slab_bytes(), 0U);
}

TEST(SlabMemoryTest, BlocksMayBeReleasedByOtherThreads) {
  SlabMemory memory;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&memory, t] {
      std::mt19937 random(t);
      std::vector<MemoryBlock> mine;
      for (int i = 0; i < 2000; ++i) {
        mine.push_back(MemoryBlock::zeros(1000 + 64 * (random() % 3), memory));
        mine.back().data()[0] = std::byte{1};
        if (mine.size() > 50) {
          std::thread elsewhere;
          if (i % 500 == 0) elsewhere = std::thread([gone = std::move(mine)] {});
          mine.clear();
          if (elsewhere.joinable()) elsewhere.join();
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(memory.slab_bytes(), 3 * SlabMemory::kSlab);
}

}  // namespace
}  // namespace hadal
