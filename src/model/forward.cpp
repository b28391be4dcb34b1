#include "model/forward.h"

#include <fmt/format.h>

#include "base/check.h"

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

void Forward::round_cache_rows(std::int64_t rows, float* x) const {
  const RowShape& shape = segments[0].state->layout().row;
  const std::int64_t c = config.head_dim, nope = c - config.qk_rope_head_dim;
  // Without simulated quantisation nothing but float32 holds the values.
  HADAL_CHECK(simulate_cache() || shape.format == RowFormat::f32);
  if (!simulate_cache()) return;
  const auto format = config.v32 ? QuantiseParams::Format::e4m3_128 : QuantiseParams::Format::e4m3_64;
  backend.run(QuantiseParams{format, rows, c, nope, x});
  if (shape.format != RowFormat::f32) backend.run(RoundBf16Params{rows, c, nope, x});
}

}  // namespace hadal
