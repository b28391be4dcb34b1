// Owned, 64-byte aligned, zero-initialised memory for numbers.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "base/huge_pages.h"

namespace hadal {

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) : Buffer(uninitialised(size)) {
    if (size > 0) std::memset(static_cast<void*>(data_.get()), 0, size * sizeof(T));
  }
  // Left as the allocator gave it, for memory that is written in full before it is read.
  static Buffer uninitialised(std::size_t size) {
    Buffer buffer;
    if (size > 0) {
      const std::size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
      // Large ones start at a huge page, and are in huge pages but for the rest behind the last whole one.
      const bool large = bytes >= kHugePage;
      void* memory = nullptr;
      if (::posix_memalign(&memory, large ? kHugePage : 64, bytes) != 0) throw std::bad_alloc();
      if (large) advise_huge_pages(memory, bytes);
      buffer.data_.reset(static_cast<T*>(memory));
    }
    buffer.size_ = size;
    return buffer;
  }
  Buffer(Buffer&& other) noexcept : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  Buffer clone() const {
    Buffer copy = uninitialised(size_);
    if (size_ > 0) std::memcpy(static_cast<void*>(copy.data()), data(), size_ * sizeof(T));
    return copy;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  const T& operator[](std::size_t i) const { return data_.get()[i]; }
  std::span<T> span() { return {data(), size_}; }
  std::span<const T> span() const { return {data(), size_}; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
  std::size_t size_ = 0;
};

}  // namespace hadal
