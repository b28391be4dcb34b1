// Where a backend keeps its numbers: the memory of the process, or that of a device.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

namespace hadal {

// Calls are in the order of the device's work: a read sees everything that was asked for before it.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  virtual ~Memory() = default;

  // Whether pointers into it may be dereferenced here.
  virtual bool on_host() const = 0;
  // Bytes that are free now; of the host, as many as there could be.
  virtual std::size_t available() const = 0;
  // At least 64-byte aligned, not initialised; throws std::bad_alloc.
  virtual std::byte* allocate(std::size_t bytes) = 0;
  virtual void release(std::byte* at, std::size_t bytes) = 0;
  virtual void clear(std::byte* at, std::size_t bytes) = 0;
  virtual void copy(std::byte* to, const std::byte* from, std::size_t bytes) = 0;
  virtual void write(std::byte* to, const void* from_host, std::size_t bytes) = 0;
  virtual void read(void* to_host, const std::byte* from, std::size_t bytes) = 0;
};

Memory& host_memory();

// Owned bytes of a Memory, which must outlive them.
class MemoryBlock {
 public:
  MemoryBlock() = default;
  static MemoryBlock uninitialised(std::size_t bytes, Memory& memory) {
    MemoryBlock block;
    block.memory_ = &memory;
    block.data_ = bytes > 0 ? memory.allocate(bytes) : nullptr;
    block.size_ = bytes;
    return block;
  }
  static MemoryBlock zeros(std::size_t bytes, Memory& memory) {
    MemoryBlock block = uninitialised(bytes, memory);
    if (bytes > 0) memory.clear(block.data_, bytes);
    return block;
  }
  MemoryBlock(MemoryBlock&& other) noexcept
      : memory_(other.memory_),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  MemoryBlock& operator=(MemoryBlock&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MemoryBlock() {
    if (data_ != nullptr) memory_->release(data_, size_);
  }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // Of a block on the host.
  std::span<std::byte> span() { return {data_, size_}; }
  std::span<const std::byte> span() const { return {data_, size_}; }
  Memory& memory() const { return *memory_; }

  MemoryBlock clone() const {
    MemoryBlock copy = uninitialised(size_, *memory_);
    if (size_ > 0) memory_->copy(copy.data_, data_, size_);
    return copy;
  }
  void read(void* to_host) const {
    if (size_ > 0) memory_->read(to_host, data_, size_);
  }
  void write(const void* from_host) {
    if (size_ > 0) memory_->write(data_, from_host, size_);
  }

 private:
  Memory* memory_ = &host_memory();
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace hadal
