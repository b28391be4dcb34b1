#include "base/memory.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "base/huge_pages.h"

namespace hadal {
namespace {

class HostMemory final : public Memory {
 public:
  bool on_host() const override { return true; }
  std::size_t available() const override { return std::numeric_limits<std::size_t>::max(); }
  std::byte* allocate(std::size_t bytes) override {
    bytes = (bytes + 63) / 64 * 64;
    // Large ones start at a huge page, and are in huge pages but for the rest behind the last whole one.
    const bool large = bytes >= kHugePage;
    void* memory = nullptr;
    if (::posix_memalign(&memory, large ? kHugePage : 64, bytes) != 0) throw std::bad_alloc();
    if (large) advise_huge_pages(memory, bytes);
    return static_cast<std::byte*>(memory);
  }
  void release(std::byte* at, std::size_t /*bytes*/) override { std::free(at); }
  void clear(std::byte* at, std::size_t bytes) override { std::memset(at, 0, bytes); }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void write(std::byte* to, const void* from_host, std::size_t bytes) override {
    std::memcpy(to, from_host, bytes);
  }
  void read(void* to_host, const std::byte* from, std::size_t bytes) override {
    std::memcpy(to_host, from, bytes);
  }
};

}  // namespace

Memory& host_memory() {
  static HostMemory memory;
  return memory;
}

}  // namespace hadal
