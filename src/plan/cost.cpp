#include "plan/cost.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "model/parameters.h"

namespace hadal {
namespace {

double stored_bytes(const Config& config, const ParameterInfo& info) {
  double bytes = 0;
  for (const StoredTensor& tensor : stored_tensors(config, info, StorageFormat::published)) {
    bytes += static_cast<double>(TensorRef{tensor.dtype, tensor.shape, nullptr}.bytes());
  }
  return bytes;
}

// What products with weights of this format count as; FP4 weights meet FP8 inputs.
Arithmetic arithmetic_of(Linear::Format format) {
  switch (format) {
    case Linear::Format::fp4:
    case Linear::Format::fp8:
      return Arithmetic::fp8;
    case Linear::Format::f16:
    case Linear::Format::bf16:
      return Arithmetic::bf16;
    case Linear::Format::f32:
      return Arithmetic::f32;
  }
  return Arithmetic::f32;
}

// What a token is multiplied with; nothing for vectors and tables.
bool class_of(const ParameterInfo& info, OpClass& op) {
  switch (info.role) {
    case Role::attention_projection:
      op = info.name.ends_with(".wo_a.weight") || info.name.ends_with(".kv_b_proj.weight")
               ? OpClass::grouped
               : OpClass::projections;
      return true;
    case Role::compressor_projection:
    case Role::index_weights:
      op = OpClass::compressors;
      return true;
    case Role::hc_mixer:
      op = OpClass::hyper_connection;
      return true;
    case Role::router:
      op = OpClass::router;
      return true;
    case Role::expert:
      op = OpClass::experts;
      return true;
    case Role::shared_expert:
      op = OpClass::shared;
      return true;
    case Role::head:
      op = OpClass::head;
      return true;
    default:
      return false;
  }
}

// Over the tokens of a sequence, of the rows that each sees of a layer with ratio m: (position + 1) / m.
struct Visible {
  double rows = 0;        // the sum
  double chosen = 0;      // the sum with at most k of each
  std::int64_t most = 0;  // of the last token
};
Visible visible_rows(std::int64_t ratio, std::int64_t k, const ForwardShape& shape) {
  Visible out;
  for (std::int64_t i = 0; i < shape.tokens; ++i) {
    out.most = (shape.context + i + 1) / ratio;
    out.rows += static_cast<double>(out.most);
    out.chosen += static_cast<double>(std::min(out.most, k));
  }
  return out;
}

}  // namespace

std::string_view to_string(OpClass op) {
  constexpr std::array<std::string_view, kOpClasses> kNames = {
      "projections", "grouped", "compressors", "hyper_connection", "router",
      "experts",     "shared",  "head",        "index_scores",     "core_attention"};
  return kNames[static_cast<std::size_t>(op)];
}

std::string_view to_string(Arithmetic arithmetic) {
  constexpr std::array<std::string_view, 4> kNames = {"fp4", "fp8", "bf16", "f32"};
  return kNames[static_cast<std::size_t>(arithmetic)];
}

double fp8_equivalent(Arithmetic arithmetic) {
  constexpr std::array<double, 4> kWeights = {0.5, 1, 2, 4};
  return kWeights[static_cast<std::size_t>(arithmetic)];
}

double TokenCost::flops() const {
  double sum = 0;
  for (const ClassCost& c : classes) sum += c.flops;
  return sum;
}
double TokenCost::fp8_equivalent_flops() const {
  double sum = 0;
  for (const ClassCost& c : classes) sum += c.flops * fp8_equivalent(c.arithmetic);
  return sum;
}
double TokenCost::weight_bytes() const {
  double sum = embedding_bytes;
  for (const ClassCost& c : classes) sum += c.weight_bytes;
  return sum;
}
double TokenCost::state_bytes() const {
  double sum = 0;
  for (const ClassCost& c : classes) sum += c.state_bytes;
  return sum;
}

RowBytes RowBytes::published(const Config& config) {
  const CacheCost cache = cache_cost(config);
  return {static_cast<double>(cache.row_bytes), static_cast<double>(cache.index_row_bytes)};
}
RowBytes RowBytes::of(const StateLayout& layout) {
  RowBytes bytes{static_cast<double>(layout.row.bytes()), 0};
  for (const BlockStateLayout& block : layout.blocks) {
    if (block.index_rows.per_page > 0) bytes.index_row = static_cast<double>(block.index_rows.shape.bytes());
  }
  return bytes;
}

CostModel::CostModel(const Config& config) : config_(config) {
  const double share =
      static_cast<double>(config.num_experts_per_tok) / static_cast<double>(config.n_routed_experts);
  const Arithmetic dense = arithmetic_of(config.dense_format), routed = arithmetic_of(config.expert_format);
  for (const OpClass op : {OpClass::projections, OpClass::shared, OpClass::compressors,
                           OpClass::hyper_connection, OpClass::head})
    weights_[op].arithmetic = dense;
  weights_[OpClass::experts].arithmetic = routed;
  // Of what is published in FP8, too, these inputs are BF16.
  const Arithmetic wide = dense == Arithmetic::f32 ? Arithmetic::f32 : Arithmetic::bf16;
  for (const OpClass op : {OpClass::grouped, OpClass::router, OpClass::core_attention})
    weights_[op].arithmetic = wide;
  weights_[OpClass::index_scores].arithmetic = dense != Arithmetic::fp8 ? wide
                                               : config.v32             ? Arithmetic::fp8
                                                                        : Arithmetic::fp4;
  Weights scratch;
  for_each_parameter(config, scratch, [&](auto&, const ParameterInfo& info) {
    if (info.block >= config.num_hidden_layers || info.shape.size() != 2) return;
    if (info.role == Role::embedding)
      weights_.embedding_bytes = stored_bytes(config, info) / static_cast<double>(info.shape[0]);
    OpClass op = OpClass::head;
    if (!class_of(info, op)) return;
    const double elements = static_cast<double>(info.shape[0]) * static_cast<double>(info.shape[1]);
    // V3.2's absorbed parts of kv_b_proj are read in BF16.
    const bool absorbed = config.v32 && op == OpClass::grouped && config.dense_format == Linear::Format::fp8;
    const double bytes = absorbed ? 2 * elements : stored_bytes(config, info);
    weights_[op].flops += 2 * elements * (op == OpClass::experts ? share : 1);
    weights_[op].weight_bytes += bytes;
    (op == OpClass::experts ? expert_bytes_ : dense_bytes_) += bytes;
  });
}

double CostModel::distinct_experts(std::int64_t tokens) const {
  const auto experts = static_cast<double>(config_.n_routed_experts),
             chosen = static_cast<double>(config_.num_experts_per_tok);
  return experts * (1 - std::pow(1 - chosen / experts, static_cast<double>(tokens)));
}

TokenCost CostModel::operator()(const RowBytes& rows, const ForwardShape& shape) const {
  const auto total = static_cast<double>(shape.total());
  TokenCost cost = weights_;
  for (ClassCost& c : cost.classes) c.weight_bytes /= total;
  cost[OpClass::experts].weight_bytes *=
      distinct_experts(shape.total()) / static_cast<double>(config_.n_routed_experts);
  const double logits = static_cast<double>(shape.sequences * shape.logits);
  cost[OpClass::head].flops *= logits / total;
  if (shape.logits == 0) cost[OpClass::head].weight_bytes = 0;

  // All sequences are alike: the sums over one's tokens, divided by their number.
  const auto heads = static_cast<double>(config_.num_attention_heads),
             tokens = static_cast<double>(shape.tokens);
  // A score takes all of a row; of V3.2's rows the output takes the latent alone.
  const double dims = config_.v32 ? static_cast<double>(config_.head_dim + config_.v32->kv_lora_rank)
                                  : 2 * static_cast<double>(config_.head_dim);
  double window = 0;
  for (std::int64_t i = 0; i < shape.tokens; ++i)
    window += static_cast<double>(std::min(config_.sliding_window, shape.context + i + 1));
  ClassCost& attention = cost[OpClass::core_attention];
  ClassCost& index = cost[OpClass::index_scores];
  std::map<std::int64_t, Visible> of_ratio;
  for (std::int64_t block = 0; block < config_.num_hidden_layers; ++block) {
    const AttentionKind kind = config_.attention_kind(block);
    const std::int64_t ratio = config_.compress_ratio(block);
    double met = window, read = std::min(window, static_cast<double>(config_.sliding_window) + tokens);
    if (kind != AttentionKind::sliding) {
      const auto known = of_ratio.find(ratio);
      const Visible visible =
          known != of_ratio.end()
              ? known->second
              : of_ratio.emplace(ratio, visible_rows(ratio, config_.index_topk, shape)).first->second;
      const bool selects = kind != AttentionKind::hca;
      met += selects ? visible.chosen : visible.rows;
      // Tokens of one sequence share the rows that they read.
      read += std::min(selects ? visible.chosen : visible.rows, static_cast<double>(visible.most));
      if (selects && visible.most > config_.index_topk) {  // else there is nothing to choose from
        index.flops +=
            2 * visible.rows * static_cast<double>(config_.index_head_dim * config_.index_n_heads) / tokens;
        index.state_bytes += rows.index_row * static_cast<double>(visible.most) / tokens;
      }
    }
    attention.flops += 2 * heads * dims * met / tokens;
    attention.state_bytes += rows.row * read / tokens;
  }
  return cost;
}

}  // namespace hadal
