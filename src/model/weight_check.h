// Weights that are infinite or NaN are refused at load, by name: a forward would carry them into every logit,
// or, since kernels differ in what they make of such codes, into some (docs/formats.md says what is read
// when).
#pragma once

#include <cstdint>
#include <string_view>

#include <hadal/error.h>

#include "base/thread_pool.h"
#include "formats/checkpoint.h"
#include "model/config.h"
#include "model/parameters.h"

namespace hadal {

struct WeightCheck {
  enum class Depth : std::uint8_t {
    none,
    // Everything but the codes of routed experts. FP4 has no code that is not finite, so of a checkpoint with
    // FP4 experts this is all; it is a tenth of Flash.
    load,
    all,  // also routed experts in FP8 or unquantised
  };
  Depth depth = Depth::load;
  ThreadPool* pool = nullptr;  // null: the calling thread alone

  // Before a Transformer of these numerics, as an option names them: `int8` packs what is in FP8, experts
  // too, and so reads it anyway.
  static WeightCheck before(std::string_view numerics, ThreadPool& pool) {
    return {numerics == "int8" ? Depth::all : Depth::load, &pool};
  }
};

// Errors: corrupt, naming the file, the tensor and the place of the first such value in the order of the
// walk. Experts without weights (they are on disk) are passed over: ExpertCache looks at them when it has
// read them.
Status check_weights(const Config& config, Weights& weights, const Checkpoint& checkpoint,
                     const WeightCheck& check);

// What the error says of element `index` of a tensor of this shape: "'embed.weight' is not finite at [3, 17]
// (BF16 0x7f80); ..."
Error not_finite(std::string_view name, DType dtype, const Shape& shape, const std::byte* data,
                 std::int64_t index);

}  // namespace hadal
