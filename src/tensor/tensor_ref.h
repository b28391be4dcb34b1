// A tensor that somebody else owns: dtype, shape and the address of its bytes, row-major, little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace hadal {

using Shape = std::vector<std::int64_t>;

struct TensorRef {
  DType dtype = DType::f32;
  Shape shape;
  const std::byte* data = nullptr;  // not aligned: safetensors promises nothing

  std::int64_t elements() const {
    std::int64_t n = 1;
    for (const auto dim : shape) n *= dim;
    return n;
  }
  std::int64_t bytes() const { return elements() * size_of(dtype); }
};

// "[129280, 4096]"
std::string to_string(const Shape& shape);

}  // namespace hadal
