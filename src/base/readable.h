// Large numbers for people.
#pragma once

#include <cstdint>
#include <string>

namespace hadal {

// 159609485896 -> "159.61 G", 640 -> "640 ": the unit comes behind it.
std::string readable(double value);
inline std::string readable(std::int64_t value) {
  return readable(static_cast<double>(value));
}

}  // namespace hadal
