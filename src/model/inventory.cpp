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
  if (config.v32) {  // FP8, a float32 scale per 128
    cost.row_bytes = plain + plain / 128 * 4 + 2 * config.qk_rope_head_dim;
    cost.index_row_bytes = config.index_head_dim + config.index_head_dim / 128 * 4;
  } else {
    cost.row_bytes = (plain + plain / 64 + 2 * config.qk_rope_head_dim + 7) / 8 * 8;
    cost.index_row_bytes = config.index_head_dim / 2 + config.index_head_dim / 32;
  }
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    cost.bytes_per_sequence += config.sliding_window * cost.row_bytes;
    const AttentionKind kind = config.attention_kind(layer);
    if (kind == AttentionKind::sliding) continue;
    const std::int64_t rows = cost.row_bytes + (kind == AttentionKind::hca ? 0 : cost.index_row_bytes);
    cost.bytes_per_token += static_cast<double>(rows) / static_cast<double>(config.compress_ratio(layer));
  }
  return cost;
}

}  // namespace hadal
