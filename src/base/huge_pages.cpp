#include "base/huge_pages.h"

#include <sys/mman.h>

#include <cstdint>

namespace hadal {

void advise_huge_pages(void* memory, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end)
    (void)::madvise(static_cast<char*>(memory) + (begin - address), end - begin, MADV_HUGEPAGE);
}

}  // namespace hadal
