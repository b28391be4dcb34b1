// Zeros that take no memory until they are written to, page by page. A rank of several lays its parameters
// out as all others do, and pays for those that it has.
#pragma once

#include <cstddef>
#include <new>
#include <span>
#include <utility>

#include "base/anonymous_memory.h"

namespace hadal {

class UntouchedFloats {
 public:
  UntouchedFloats() = default;
  explicit UntouchedFloats(std::size_t size) : size_(size) {
    auto memory = AnonymousMemory::map(size * sizeof(float));
    if (!memory) throw std::bad_alloc();
    memory_ = std::move(*memory);
  }

  float* data() { return reinterpret_cast<float*>(memory_.data()); }
  const float* data() const { return reinterpret_cast<const float*>(memory_.data()); }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::span<float> span() { return {data(), size_}; }
  std::span<const float> span() const { return {data(), size_}; }

 private:
  AnonymousMemory memory_;
  std::size_t size_ = 0;
};

}  // namespace hadal
