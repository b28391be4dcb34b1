#include "base/slab_memory.h"

#include <iterator>
#include <new>
#include <utility>

#include "base/check.h"

namespace hadal {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kInSlabs = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kInSlabs = false;
#else
constexpr bool kInSlabs = true;
#endif
#else
constexpr bool kInSlabs = true;
#endif

std::size_t block_size(std::size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace

std::byte* SlabMemory::allocate(std::size_t bytes) {
  if (!kInSlabs || bytes > kLargest) return host_memory().allocate(bytes);
  const std::size_t size = block_size(bytes);
  const std::scoped_lock lock(mutex_);
  SizeClass& of_size = classes_[size];
  if (of_size.with_room.empty()) {
    Slab slab;
    slab.blocks = kSlab / size;
    slab.free.reserve(slab.blocks);
    auto memory = AnonymousMemory::map(slab.blocks * size);
    if (!memory) throw std::bad_alloc();
    slab_bytes_ += memory->size();
    for (std::size_t i = slab.blocks; i-- > 0;) slab.free.push_back(memory->data() + i * size);
    std::byte* begin = memory->data();
    slab.memory = std::move(*memory);
    of_size.slabs.emplace(begin, std::move(slab));
    of_size.with_room.insert(begin);
    ++of_size.empty;
  }
  std::byte* begin = *of_size.with_room.begin();
  Slab& slab = of_size.slabs.at(begin);
  if (slab.free.size() == slab.blocks) --of_size.empty;
  std::byte* block = slab.free.back();
  slab.free.pop_back();
  if (slab.free.empty()) of_size.with_room.erase(begin);
  return block;
}

void SlabMemory::release(std::byte* at, std::size_t bytes) {
  if (!kInSlabs || bytes > kLargest) {
    host_memory().release(at, bytes);
    return;
  }
  const std::scoped_lock lock(mutex_);
  SizeClass& of_size = classes_.at(block_size(bytes));
  const auto found = std::prev(of_size.slabs.upper_bound(at));
  auto& [begin, slab] = *found;
  HADAL_CHECK(at < begin + slab.memory.size());
  slab.free.push_back(at);
  of_size.with_room.insert(begin);
  if (slab.free.size() < slab.blocks) return;
  // One empty slab stays, lest a block that comes and goes at the edge take and return one each time.
  if (of_size.empty > 0) {
    slab_bytes_ -= slab.memory.size();
    of_size.with_room.erase(begin);
    of_size.slabs.erase(found);
  } else {
    ++of_size.empty;
  }
}

std::size_t SlabMemory::slab_bytes() const {
  const std::scoped_lock lock(mutex_);
  return slab_bytes_;
}

SlabMemory& slab_memory() {
  static auto& memory = *new SlabMemory;  // for good: blocks may be released while the process ends
  return memory;
}

}  // namespace hadal
