#include "base/anonymous_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/huge_pages.h"

namespace hadal {

Result<AnonymousMemory> AnonymousMemory::map(std::size_t bytes) {
  AnonymousMemory memory;
  if (bytes == 0) return memory;
  // mmap aligns to 4 KB; one huge page more leaves room to start at a multiple of one.
  const std::size_t mapped = bytes + kHugePage;
  void* start = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) {
    return fail(ErrorCode::resource_exhausted,
                fmt::format("cannot take {} bytes of memory: {}", bytes, std::strerror(errno)));
  }
  const auto address = reinterpret_cast<std::uintptr_t>(start);
  const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = begin + (bytes + 4095) / 4096 * 4096;
  auto* first = static_cast<std::byte*>(start);
  if (begin > address) ::munmap(start, begin - address);
  if (address + mapped > end) ::munmap(first + (end - address), address + mapped - end);
  memory.data_ = first + (begin - address);
  memory.size_ = bytes;
  advise_huge_pages(memory.data_, bytes);
  return memory;
}

AnonymousMemory::AnonymousMemory(AnonymousMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AnonymousMemory& AnonymousMemory::operator=(AnonymousMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AnonymousMemory::~AnonymousMemory() {
  if (data_ != nullptr) ::munmap(data_, (size_ + 4095) / 4096 * 4096);
}

}  // namespace hadal
