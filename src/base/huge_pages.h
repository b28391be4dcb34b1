// Large memory in huge pages: 2 MB behind one entry of the address translation instead of 4 KB, which linear
// reads of weights notice (docs/memory.md).
#pragma once

#include <cstddef>

namespace hadal {

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Asks for huge pages where a whole one fits into the range. No more than advice: the system may have none.
void advise_huge_pages(void* memory, std::size_t bytes);

}  // namespace hadal
