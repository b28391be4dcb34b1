#include "model/inventory.h"

namespace hadal {
namespace {

std::int64_t elements(const Shape& shape) {
  return TensorRef{DType::f32, shape, nullptr}.elements();
}

}  // namespace

void Inventory::add(DType dtype, std::int64_t tensor_bytes) {
  ++tensors;
  bytes += tensor_bytes;
  Entry& entry = dtypes[dtype];
  ++entry.tensors;
  entry.bytes += tensor_bytes;
}

Inventory expected_inventory(const Config& config, StorageFormat format) {
  Inventory inventory;
  Weights slots;
  for_each_parameter(config, slots, [&](auto& /*slot*/, const ParameterInfo& info) {
    for (const StoredTensor& stored : stored_tensors(config, info, format))
      inventory.add(stored.dtype, elements(stored.shape) * size_of(stored.dtype));
  });
  return inventory;
}

Inventory checkpoint_inventory(const Checkpoint& checkpoint) {
  Inventory inventory;
  for (const std::string_view name : checkpoint.names()) {
    const TensorRef& tensor = *checkpoint.find(name);
    inventory.add(tensor.dtype, tensor.bytes());
  }
  return inventory;
}

ParameterCount count_parameters(const Config& config) {
  ParameterCount count;
  Weights slots;
  for_each_parameter(config, slots, [&](auto& /*slot*/, const ParameterInfo& info) {
    if (info.role == Role::hash_table) return;
    const std::int64_t n = elements(info.shape);
    if (info.block >= config.num_hidden_layers) {
      count.mtp += n;
      return;
    }
    count.total += n;
    if (info.role != Role::embedding && info.expert < config.num_experts_per_tok) count.active += n;
  });
  return count;
}

CacheCost cache_cost(const Config& config) {
  CacheCost cost;
  const std::int64_t plain = config.head_dim - config.qk_rope_head_dim;
  cost.row_bytes = (plain + plain / 64 + 2 * config.qk_rope_head_dim + 7) / 8 * 8;
  cost.index_row_bytes = config.index_head_dim / 2 + config.index_head_dim / 32;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    cost.bytes_per_sequence += config.sliding_window * cost.row_bytes;
    const AttentionKind kind = config.attention_kind(layer);
    if (kind == AttentionKind::sliding) continue;
    const std::int64_t rows = cost.row_bytes + (kind == AttentionKind::csa ? cost.index_row_bytes : 0);
    cost.bytes_per_token += static_cast<double>(rows) / static_cast<double>(config.compress_ratio(layer));
  }
  return cost;
}

ParameterCount count_parameters(const BaselineV32& c) {
  const std::int64_t d = c.hidden_size, heads = c.num_attention_heads;
  const std::int64_t attention =
      c.q_lora_rank * d + c.q_lora_rank + heads * (c.qk_nope_head_dim + c.qk_rope_head_dim) * c.q_lora_rank +
      (c.kv_lora_rank + c.qk_rope_head_dim) * d + c.kv_lora_rank +
      heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank + d * heads * c.v_head_dim;
  // wq_b, wk with its LayerNorm, weights_proj
  const std::int64_t indexer = c.index_n_heads * c.index_head_dim * c.q_lora_rank + c.index_head_dim * d +
                               2 * c.index_head_dim + c.index_n_heads * d;
  const std::int64_t layer = attention + indexer + 2 * d;
  const std::int64_t router = c.n_routed_experts * d + c.n_routed_experts;
  const std::int64_t expert = 3 * d * c.moe_intermediate_size;
  const std::int64_t dense = 3 * d * c.intermediate_size;
  const std::int64_t moe_layers = c.num_hidden_layers - c.first_k_dense_replace;
  const std::int64_t common = c.num_hidden_layers * layer + c.first_k_dense_replace * dense +
                              moe_layers * (router + expert) + d + c.vocab_size * d;  // with the head
  ParameterCount count;
  count.total = common + moe_layers * c.n_routed_experts * expert + c.vocab_size * d;
  count.active = common + moe_layers * c.num_experts_per_tok * expert;
  return count;
}

CacheCost cache_cost(const BaselineV32& c) {
  CacheCost cost;
  cost.row_bytes = c.kv_lora_rank + c.kv_lora_rank / 128 * 4 + 2 * c.qk_rope_head_dim;  // FP32 scale per 128
  cost.index_row_bytes = c.index_head_dim + 4;                                          // FP8, one FP32 scale
  cost.bytes_per_token = static_cast<double>(c.num_hidden_layers * (cost.row_bytes + cost.index_row_bytes));
  return cost;
}

}  // namespace hadal
