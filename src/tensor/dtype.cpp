#include "tensor/dtype.h"

#include <array>

namespace hadal {
namespace {
constexpr std::array<std::string_view, kDTypeCount> kNames = {"F32", "F16", "BF16", "F8_E4M3", "F8_E8M0",
                                                              "I8",  "I32", "I64",  "U8"};
}

std::string_view to_string(DType dtype) {
  return kNames.at(static_cast<std::size_t>(dtype));
}

std::optional<DType> dtype_from_string(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames.at(i) == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace hadal
