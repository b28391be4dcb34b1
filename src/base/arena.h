// Scratch memory for the intermediates of a forward: taken in order, given back all at once by scope. The
// blocks are kept, so a forward no larger than an earlier one allocates nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/memory.h"

namespace hadal {

class Arena {
 public:
  explicit Arena(Memory& memory = host_memory()) : memory_(memory) {}

  // n elements, 64-byte aligned, with whatever they held before.
  template <class T>
  T* take(std::int64_t n) {
    static_assert(std::is_trivially_copyable_v<T>);
    const std::size_t bytes = (static_cast<std::size_t>(n) * sizeof(T) + 63) / 64 * 64;
    while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].size()) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) {
      blocks_.push_back(MemoryBlock::uninitialised(std::max(bytes, kBlock), memory_));
      used_ = 0;
    }
    std::byte* memory = blocks_[block_].data() + used_;
    used_ += bytes;
    taken_ += bytes;
    most_taken_ = std::max(most_taken_, taken_);
    return reinterpret_cast<T*>(memory);
  }

  // With nothing taken: one block as large as all that was ever taken at once. What does not fit behind what
  // a block already holds leaves its end unused; takes that repeat in the same order then waste nothing.
  void consolidate() {
    if (blocks_.size() <= 1 || taken_ != 0) return;
    blocks_.clear();
    blocks_.push_back(MemoryBlock::uninitialised(most_taken_, memory_));
    block_ = used_ = 0;
  }

  // Everything taken during the life of a Scope is free again at its end.
  class Scope {
   public:
    explicit Scope(Arena& arena)
        : arena_(arena), block_(arena.block_), used_(arena.used_), taken_(arena.taken_) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() {
      arena_.block_ = block_;
      arena_.used_ = used_;
      arena_.taken_ = taken_;
    }

   private:
    Arena& arena_;
    std::size_t block_;
    std::size_t used_;
    std::size_t taken_;
  };

  std::size_t reserved_bytes() const {
    std::size_t bytes = 0;
    for (const auto& block : blocks_) bytes += block.size();
    return bytes;
  }

 private:
  static constexpr std::size_t kBlock = std::size_t{8} << 20;

  Memory& memory_;
  std::vector<MemoryBlock> blocks_;
  std::size_t block_ = 0;  // the block in use
  std::size_t used_ = 0;   // bytes of it
  std::size_t taken_ = 0, most_taken_ = 0;
};

}  // namespace hadal
