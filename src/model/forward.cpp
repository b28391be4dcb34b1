#include "model/forward.h"

#include <fmt/format.h>

namespace hadal {

std::string_view to_string(Numerics numerics) {
  switch (numerics) {
    case Numerics::exact:
      return "exact";
    case Numerics::qsim:
      return "qsim";
    case Numerics::official:
      return "official";
    case Numerics::int8:
      return "int8";
  }
  return "unknown";
}

Result<Numerics> numerics_from_string(std::string_view name) {
  for (const auto numerics : {Numerics::exact, Numerics::qsim, Numerics::official, Numerics::int8}) {
    if (name == to_string(numerics)) return numerics;
  }
  return fail(ErrorCode::invalid_argument,
              fmt::format("numerics '{}': there are exact, qsim, official and int8", name));
}

}  // namespace hadal
