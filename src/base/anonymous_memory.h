// A large piece of memory that belongs to no file: page-aligned, in huge pages where the system grants them,
// zero until written, and taken from the machine only as it is touched.
#pragma once

#include <cstddef>

#include <hadal/error.h>

namespace hadal {

class AnonymousMemory {
 public:
  // resource_exhausted if the address space or its accounting has no room.
  static Result<AnonymousMemory> map(std::size_t bytes);

  AnonymousMemory() = default;
  AnonymousMemory(AnonymousMemory&& other) noexcept;
  AnonymousMemory& operator=(AnonymousMemory&& other) noexcept;
  ~AnonymousMemory();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace hadal
