#include "plan/cost.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

TokenCost token_cost(const Config& config, const StateLayout& layout, std::int64_t context,
                     std::int64_t n_tokens, std::int64_t n_logits) {
  const auto tokens = static_cast<double>(n_tokens), logits = static_cast<double>(n_logits);
  const auto experts = static_cast<double>(config.n_routed_experts),
             chosen = static_cast<double>(config.num_experts_per_tok);
  // An expert stays idle if none of n tokens picks it.
  const double hit_share = 1 - std::pow(1 - chosen / experts, tokens);

  TokenCost cost;
  Weights scratch;
  for_each_parameter(config, scratch, [&](auto&, const ParameterInfo& info) {
    if (info.block >= config.num_hidden_layers || info.shape.size() != 2) return;  // MTP; vectors are nothing
    const double elements = static_cast<double>(info.shape[0]) * static_cast<double>(info.shape[1]);
    const double bytes = stored_bytes(config, info);
    switch (info.role) {
      case Role::embedding:
        cost.weight_bytes += bytes / static_cast<double>(info.shape[0]);
        break;
      case Role::hash_table:
      case Role::position_bias:
        break;
      case Role::head:
        cost.weight_flops += 2 * elements * logits / tokens;
        cost.weight_bytes += n_logits > 0 ? bytes / tokens : 0;
        break;
      case Role::expert:
        cost.weight_flops += 2 * elements * chosen / experts;
        cost.weight_bytes += bytes * hit_share / tokens;
        break;
      default:
        cost.weight_flops += 2 * elements;
        cost.weight_bytes += bytes / tokens;
    }
  });

  // Rows that the token in the middle of the batch sees.
  const std::int64_t position = context + n_tokens / 2;
  const auto heads = static_cast<double>(config.num_attention_heads),
             dim = static_cast<double>(config.head_dim);
  for (std::int64_t block = 0; block < config.num_hidden_layers; ++block) {
    auto rows = static_cast<double>(std::min(config.sliding_window, position + 1));
    const AttentionKind kind = config.attention_kind(block);
    if (kind != AttentionKind::sliding) {
      const std::int64_t visible = (position + 1) / config.compress_ratio(block);
      const bool selects = kind == AttentionKind::csa && visible > config.index_topk;
      rows += static_cast<double>(selects ? config.index_topk : visible);
      if (selects) {
        const auto& index_rows = layout.blocks[static_cast<std::size_t>(block)].index_rows;
        const auto scored = static_cast<double>(visible);
        cost.index_flops += 2 * scored * static_cast<double>(config.index_head_dim * config.index_n_heads);
        cost.state_bytes += scored * static_cast<double>(index_rows.shape.bytes());
      }
    }
    cost.attention_flops += 4 * heads * dim * rows;
    cost.state_bytes += static_cast<double>(layout.row.bytes()) * rows;
  }
  return cost;
}

}  // namespace hadal
