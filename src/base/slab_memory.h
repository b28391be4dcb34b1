// Host memory for blocks that come and go by the thousand in a few sizes, as states and their snapshots do:
// equal blocks lie side by side in slabs, and a slab that is empty goes back to the system. In the common
// heap, short-lived small blocks among them would keep what they leave behind from ever going back.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "base/anonymous_memory.h"
#include "base/memory.h"

namespace hadal {

// For any number of threads. Blocks of more than kLargest bytes are host_memory()'s; so are all under
// AddressSanitizer, which then watches each of them.
class SlabMemory final : public Memory {
 public:
  static constexpr std::size_t kSlab = std::size_t{4} << 20;
  static constexpr std::size_t kLargest = kSlab / 4;

  bool on_host() const override { return true; }
  std::size_t available() const override { return host_memory().available(); }
  std::byte* allocate(std::size_t bytes) override;
  void release(std::byte* at, std::size_t bytes) override;
  void clear(std::byte* at, std::size_t bytes) override { host_memory().clear(at, bytes); }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    host_memory().copy(to, from, bytes);
  }
  void write(std::byte* to, const void* from_host, std::size_t bytes) override {
    host_memory().write(to, from_host, bytes);
  }
  void read(void* to_host, const std::byte* from, std::size_t bytes) override {
    host_memory().read(to_host, from, bytes);
  }

  std::size_t slab_bytes() const;  // taken from the system and not given back

 private:
  struct Slab {
    AnonymousMemory memory;
    std::vector<std::byte*> free;  // the next to be used last
    std::size_t blocks = 0;
  };
  // The slabs of one block size by where they begin. A block is taken from the first that has one, so that
  // the last ones empty.
  struct SizeClass {
    std::map<std::byte*, Slab> slabs;
    std::set<std::byte*> with_room;
    std::size_t empty = 0;
  };

  mutable std::mutex mutex_;
  std::size_t slab_bytes_ = 0;
  std::map<std::size_t, SizeClass> classes_;  // by block size, a multiple of 64 bytes
};

// That of the process.
SlabMemory& slab_memory();

}  // namespace hadal
