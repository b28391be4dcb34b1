// What one token costs: floating-point operations and bytes that must be read, by part of the model
// (docs/plan.md). Counted from the config, 2 operations per multiply-add; `hadal bench --compare` and the
// tests hold these counts to what the ops themselves count (src/ops/profile.h).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "model/config.h"
#include "model/inventory.h"
#include "model/sequence_state.h"

namespace hadal {

enum class OpClass : std::uint8_t {
  projections,       // of attention and indexer: wq_a, wq_b, wkv, wo_b; V3.2: *_proj, indexer.wk
  grouped,           // products with BF16 inputs: wo_a; V3.2: the absorbed up-projections
  compressors,       // wkv, wgate of compressors, the indexer's weights_proj
  hyper_connection,  // hc_*_fn
  router,
  experts,  // routed
  shared,   // shared experts; V3.2: also the dense layers
  head,
  index_scores,    // q.k of the lightning indexer
  core_attention,  // over window and compressed rows
};
inline constexpr std::size_t kOpClasses = 10;
std::string_view to_string(OpClass op);

// What the operands of a product are; a dot product of the narrower one counts.
enum class Arithmetic : std::uint8_t { fp4, fp8, bf16, f32 };
std::string_view to_string(Arithmetic arithmetic);
// Of an operation, in FP8 operations: 1/2, 1, 2, 4 (docs/plan.md says what the published comparison counts).
double fp8_equivalent(Arithmetic arithmetic);

struct ClassCost {
  Arithmetic arithmetic = Arithmetic::fp8;
  double flops = 0;
  double weight_bytes = 0;  // as stored, scales included; experts that several tokens share count once
  double state_bytes = 0;   // rows read

  double bytes() const { return weight_bytes + state_bytes; }
};

struct TokenCost {
  std::array<ClassCost, kOpClasses> classes{};
  double embedding_bytes = 0;  // its row

  const ClassCost& operator[](OpClass op) const { return classes[static_cast<std::size_t>(op)]; }
  ClassCost& operator[](OpClass op) { return classes[static_cast<std::size_t>(op)]; }
  double flops() const;
  double fp8_equivalent_flops() const;
  double weight_bytes() const;
  double state_bytes() const;
  double bytes() const { return weight_bytes() + state_bytes(); }
};

// The tokens of one forward: `tokens` of each of `sequences` that have read `context` before.
struct ForwardShape {
  std::int64_t context = 0;
  std::int64_t sequences = 1;
  std::int64_t tokens = 1;
  std::int64_t logits = 1;  // of each sequence

  std::int64_t total() const { return sequences * tokens; }
};

// Bytes of a cached row and of an index row.
struct RowBytes {
  double row = 0, index_row = 0;

  static RowBytes published(const Config& config);
  static RowBytes of(const StateLayout& layout);  // as this build keeps them
};

// A model's costs, from one walk over its parameters. MTP blocks are left out.
class CostModel {
 public:
  explicit CostModel(const Config& config);

  // The mean over the tokens of a forward. Each MoE layer is taken to hit the expected number of distinct
  // experts of so many independent draws.
  TokenCost operator()(const RowBytes& rows, const ForwardShape& shape) const;

  // Of E routed experts that k are chosen of, those that none of n tokens leaves idle.
  double distinct_experts(std::int64_t tokens) const;
  double expert_bytes() const { return expert_bytes_; }  // stored, of all layers
  double dense_bytes() const { return dense_bytes_; }    // everything else but the embedding
  const Config& config() const { return config_; }

 private:
  Config config_;
  TokenCost weights_;  // of one token: flops; bytes of what it meets, with all experts
  double expert_bytes_ = 0, dense_bytes_ = 0;
};

}  // namespace hadal
