#include "base/readable.h"

#include <array>
#include <cstddef>

#include <fmt/format.h>

namespace hadal {

std::string readable(double value) {
  constexpr std::array<const char*, 5> kUnits = {"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  while (value >= 999.995 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} ", value) : fmt::format("{:.2f} {}", value, kUnits.at(unit));
}

}  // namespace hadal
