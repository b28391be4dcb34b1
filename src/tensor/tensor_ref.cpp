#include "tensor/tensor_ref.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace hadal {

std::string to_string(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace hadal
