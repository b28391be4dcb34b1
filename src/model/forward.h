// What the parts of one forward share: the ragged batch, the numerics, scratch memory, and a tap for tests.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "base/arena.h"
#include "model/config.h"
#include "model/expert_cache.h"
#include "model/parameters.h"
#include "model/rope.h"
#include "model/sequence_state.h"
#include "ops/backend.h"
#include "tensor/tensor_ref.h"

namespace hadal {

// Which roundings of the published deployment are simulated (docs/exactness.md).
enum class Numerics : std::uint8_t {
  exact,     // weights dequantised exactly, nothing simulated
  qsim,      // what the caches store: KV rows in FP8, the indexer in FP4
  official,  // also the FP8 inputs of quantised linears: what the official code computes
  int8,      // quantised linears in integers instead, for speed: inputs int8 per 1x32, FP8 weights too
};
std::string_view to_string(Numerics numerics);
// Whether rows are rounded to what the published caches store.
constexpr bool quantises_rows(Numerics numerics) {
  return numerics != Numerics::exact;
}
Result<Numerics> numerics_from_string(std::string_view name);

// Consecutive tokens of one sequence within the batch.
struct Segment {
  SequenceState* state = nullptr;
  std::int64_t start = 0;  // position in the sequence of its first token
  std::int64_t begin = 0;  // row of the batch
  std::int64_t count = 0;
};

// Sees named intermediates as they are computed; null in production. Names as in the golden files.
class Tap {
 public:
  virtual ~Tap() = default;
  virtual void floats(const std::string& name, const float* data, const Shape& shape) = 0;
  virtual void ints(const std::string& name, const std::int32_t* data, const Shape& shape) = 0;
};

struct Forward {
  const Config& config;
  Backend& backend;
  Numerics numerics;
  Arena& arena;
  std::span<const Segment> segments;
  std::span<const std::int32_t> tokens;  // [T]
  const RotaryFrequencies& sliding_frequencies;
  const RotaryFrequencies& compress_frequencies;
  const float* sliding_cos;        // [T, r/2]
  const float* sliding_sin;        // [T, r/2]
  const float* compress_cos;       // [T, r/2]
  const float* compress_sin;       // [T, r/2]
  const Weights& weights;          // of the whole model
  ExpertCache* experts = nullptr;  // where routed experts are, if not in `weights`
  Tap* tap = nullptr;
  std::string tap_prefix;  // "layers.3."

  std::int64_t n_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  bool simulate_cache() const { return quantises_rows(numerics); }
  InputRounding rounding() const {
    return numerics == Numerics::official ? InputRounding::e4m3
           : numerics == Numerics::int8   ? InputRounding::int8
                                          : InputRounding::none;
  }

  void linear(const Linear& w, const float* x, std::int64_t n, float* y) const {
    backend.run(LinearParams{n, x, &w, 1, rounding(), y});
  }
  // Of a compressor, which is not quantised.
  void compressor_linear(const Linear& w, const float* x, std::int64_t n, float* y) const {
    backend.run(
        LinearParams{n, x, &w, 1, numerics == Numerics::int8 ? InputRounding::bf16 : InputRounding::none, y});
  }
  void rms_norm(const float* x, const float* weight, std::int64_t rows, std::int64_t dim, float* out) const {
    backend.run(RmsNormParams{rows, dim, x, weight, static_cast<float>(config.rms_norm_eps), out});
  }
  // KV rows [rows, c] rounded to what the caches of these numerics and this state keep.
  void round_cache_rows(std::int64_t rows, float* x) const;
  void watch(const char* name, const float* data, std::initializer_list<std::int64_t> shape) const {
    if (tap != nullptr) tap->floats(tap_prefix + name, data, shape);
  }
  void watch(const char* name, const std::int32_t* data, std::initializer_list<std::int64_t> shape) const {
    if (tap != nullptr) tap->ints(tap_prefix + name, data, shape);
  }
};

}  // namespace hadal
