// The one declaration of the parameters. for_each_parameter walks every tensor of a model and says its
// name, shape and role; loading, inventory, initialisation, exporting and cost all use this walk, and nobody
// else spells a tensor name (architecture.md section 8).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "ops/linear.h"
#include "tensor/tensor_ref.h"

namespace hadal {

enum class Role : std::uint8_t {
  embedding,
  head,
  norm,                  // RMSNorm weight
  attention_projection,  // wq_a, wq_b, wkv, wo_a, wo_b, indexer.wq_b
  mtp_projection,        // e_proj, h_proj
  expert,                // routed experts' w1, w2, w3
  shared_expert,
  compressor_projection,  // wkv, wgate of a compressor
  index_weights,          // indexer.weights_proj
  router,
  router_bias,
  hash_table,     // tid2eid
  position_bias,  // ape
  attention_sink,
  hc_mixer,  // hc_*_fn
  hc_base,
  hc_scale,
};
std::string_view to_string(Role role);

struct ParameterInfo {
  std::string name;  // as published, "layers.3.attn.wq_a.weight"
  Shape shape;       // logical: an FP4 matrix is [out, in] here, [out, in/2] in the file
  Role role = Role::norm;
  std::int64_t block = -1;   // 0 .. num_blocks-1; -1 for the top level
  std::int64_t expert = -1;  // of routed experts
};

// Whether it belongs to a lightning indexer, which learns from a loss of its own.
bool is_indexer(const ParameterInfo& info);

// A small float32 parameter. The file may hold F32, BF16 or F16; loading converts when it must.
struct Vector {
  std::span<const float> values;
  const float* data() const { return values.data(); }
};

// Token id to expert ids, [vocab, num_experts_per_tok], checked to be in range at load.
struct HashTable {
  std::span<const std::int32_t> values;
};

struct HyperConnectionWeights {
  Linear fn;           // [(2+n)n, n*d]
  Vector base, scale;  // [(2+n)n], [3]
};
struct HcHeadWeights {
  Linear fn;           // [n, n*d]
  Vector base, scale;  // [n], [1]
};
struct CompressorWeights {
  Vector ape;         // [m, o*c']
  Linear wkv, wgate;  // [o*c', d]
  Vector norm;        // [c']
};
struct IndexerWeights {
  Linear wq_b;          // [index heads * dim, q_lora]
  Linear weights_proj;  // [index heads, d]
  CompressorWeights compressor;
};
struct AttentionWeights {
  Vector attn_sink;              // [H]
  Linear wq_a;                   // [q_lora, d]
  Vector q_norm;                 // [q_lora]
  Linear wq_b;                   // [H*c, q_lora]
  Linear wkv;                    // [c, d]
  Vector kv_norm;                // [c]
  Linear wo_a;                   // [o_groups*o_lora, H*c/o_groups]
  Linear wo_b;                   // [d, o_groups*o_lora]
  CompressorWeights compressor;  // csa and hca layers
  IndexerWeights indexer;        // csa layers
};
struct MoeWeights {
  Linear gate;        // [E, d]
  Vector bias;        // [E], learned routing
  HashTable tid2eid;  // hash routing
  std::vector<Expert> experts;
  Expert shared;
};
struct BlockWeights {
  HyperConnectionWeights hc_attn, hc_ffn;
  Vector attn_norm, ffn_norm;  // [d]
  AttentionWeights attn;
  MoeWeights ffn;
};
struct MtpWeights {
  BlockWeights block;
  Linear e_proj, h_proj;      // [d, d]
  Vector enorm, hnorm, norm;  // [d]
  HcHeadWeights hc_head;
};
struct Weights {
  Linear embed, head;  // [vocab, d]
  Vector norm;         // [d]
  HcHeadWeights hc_head;
  std::vector<BlockWeights> layers;
  std::vector<MtpWeights> mtp;
};

namespace parameters_detail {

// The walk itself: one line per tensor, in the order of the table in architecture.md section 8.
template <class Visitor>
class Walk {
 public:
  Walk(const Config& config, Visitor& visit) : c_(config), visit_(visit) {}

  void model(Weights& w) {
    const auto d = c_.hidden_size;
    emit(w.embed, "embed.weight", {c_.vocab_size, d}, Role::embedding);
    emit(w.head, "head.weight", {c_.vocab_size, d}, Role::head);
    emit(w.norm, "norm.weight", {d}, Role::norm);
    hc_head(w.hc_head, "");
    w.layers.resize(static_cast<std::size_t>(c_.num_hidden_layers));
    for (std::size_t i = 0; i < w.layers.size(); ++i) {
      block_ = static_cast<std::int64_t>(i);
      block(w.layers[i], "layers." + std::to_string(i) + ".");
    }
    w.mtp.resize(static_cast<std::size_t>(c_.num_nextn_predict_layers));
    for (std::size_t i = 0; i < w.mtp.size(); ++i) {
      block_ = c_.num_hidden_layers + static_cast<std::int64_t>(i);
      const std::string p = "mtp." + std::to_string(i) + ".";
      MtpWeights& m = w.mtp[i];
      emit(m.e_proj, p + "e_proj.weight", {d, d}, Role::mtp_projection);
      emit(m.h_proj, p + "h_proj.weight", {d, d}, Role::mtp_projection);
      emit(m.enorm, p + "enorm.weight", {d}, Role::norm);
      emit(m.hnorm, p + "hnorm.weight", {d}, Role::norm);
      emit(m.norm, p + "norm.weight", {d}, Role::norm);
      hc_head(m.hc_head, p);
      block(m.block, p);
    }
    block_ = -1;
  }

 private:
  template <class Slot>
  void emit(Slot& slot, std::string name, Shape shape, Role role, std::int64_t expert = -1) {
    visit_(slot, ParameterInfo{std::move(name), std::move(shape), role, block_, expert});
  }

  void hc_head(HcHeadWeights& w, const std::string& p) {
    const auto n = c_.hc_mult;
    emit(w.fn, p + "hc_head_fn", {n, n * c_.hidden_size}, Role::hc_mixer);
    emit(w.base, p + "hc_head_base", {n}, Role::hc_base);
    emit(w.scale, p + "hc_head_scale", {1}, Role::hc_scale);
  }

  void hyper_connection(HyperConnectionWeights& w, const std::string& p) {
    const auto n = c_.hc_mult;
    emit(w.fn, p + "_fn", {(2 + n) * n, n * c_.hidden_size}, Role::hc_mixer);
    emit(w.base, p + "_base", {(2 + n) * n}, Role::hc_base);
    emit(w.scale, p + "_scale", {3}, Role::hc_scale);
  }

  void compressor(CompressorWeights& w, const std::string& p, std::int64_t ratio, std::int64_t dim) {
    const auto wide = (ratio == 4 ? 2 : 1) * dim;  // overlap keeps two sets of channels
    emit(w.ape, p + "ape", {ratio, wide}, Role::position_bias);
    emit(w.wkv, p + "wkv.weight", {wide, c_.hidden_size}, Role::compressor_projection);
    emit(w.wgate, p + "wgate.weight", {wide, c_.hidden_size}, Role::compressor_projection);
    emit(w.norm, p + "norm.weight", {dim}, Role::norm);
  }

  void attention(AttentionWeights& w, const std::string& p) {
    const auto d = c_.hidden_size, heads = c_.num_attention_heads, dim = c_.head_dim;
    emit(w.attn_sink, p + "attn_sink", {heads}, Role::attention_sink);
    emit(w.wq_a, p + "wq_a.weight", {c_.q_lora_rank, d}, Role::attention_projection);
    emit(w.q_norm, p + "q_norm.weight", {c_.q_lora_rank}, Role::norm);
    emit(w.wq_b, p + "wq_b.weight", {heads * dim, c_.q_lora_rank}, Role::attention_projection);
    emit(w.wkv, p + "wkv.weight", {dim, d}, Role::attention_projection);
    emit(w.kv_norm, p + "kv_norm.weight", {dim}, Role::norm);
    const auto o_rank = c_.o_groups * c_.o_lora_rank;
    emit(w.wo_a, p + "wo_a.weight", {o_rank, heads * dim / c_.o_groups}, Role::attention_projection);
    emit(w.wo_b, p + "wo_b.weight", {d, o_rank}, Role::attention_projection);
    const AttentionKind kind = c_.attention_kind(block_);
    if (kind == AttentionKind::sliding) return;
    compressor(w.compressor, p + "compressor.", c_.compress_ratio(block_), dim);
    if (kind != AttentionKind::csa) return;
    const auto index_rows = c_.index_n_heads * c_.index_head_dim;
    emit(w.indexer.wq_b, p + "indexer.wq_b.weight", {index_rows, c_.q_lora_rank}, Role::attention_projection);
    emit(w.indexer.weights_proj, p + "indexer.weights_proj.weight", {c_.index_n_heads, d},
         Role::index_weights);
    compressor(w.indexer.compressor, p + "indexer.compressor.", c_.compress_ratio(block_), c_.index_head_dim);
  }

  void expert(Expert& w, const std::string& p, Role role, std::int64_t index = -1) {
    const auto d = c_.hidden_size, inter = c_.moe_intermediate_size;
    emit(w.w1, p + "w1.weight", {inter, d}, role, index);
    emit(w.w2, p + "w2.weight", {d, inter}, role, index);
    emit(w.w3, p + "w3.weight", {inter, d}, role, index);
  }

  void moe(MoeWeights& w, const std::string& p) {
    emit(w.gate, p + "gate.weight", {c_.n_routed_experts, c_.hidden_size}, Role::router);
    if (c_.hash_routed(block_)) {
      emit(w.tid2eid, p + "gate.tid2eid", {c_.vocab_size, c_.num_experts_per_tok}, Role::hash_table);
    } else {
      emit(w.bias, p + "gate.bias", {c_.n_routed_experts}, Role::router_bias);
    }
    w.experts.resize(static_cast<std::size_t>(c_.n_routed_experts));
    for (std::size_t e = 0; e < w.experts.size(); ++e) {
      expert(w.experts[e], p + "experts." + std::to_string(e) + ".", Role::expert,
             static_cast<std::int64_t>(e));
    }
    expert(w.shared, p + "shared_experts.", Role::shared_expert);
  }

  void block(BlockWeights& w, const std::string& p) {
    const auto d = c_.hidden_size;
    hyper_connection(w.hc_attn, p + "hc_attn");
    hyper_connection(w.hc_ffn, p + "hc_ffn");
    emit(w.attn_norm, p + "attn_norm.weight", {d}, Role::norm);
    emit(w.ffn_norm, p + "ffn_norm.weight", {d}, Role::norm);
    attention(w.attn, p + "attn.");
    moe(w.ffn, p + "ffn.");
  }

  const Config& c_;
  Visitor& visit_;
  std::int64_t block_ = -1;
};

}  // namespace parameters_detail

// Calls visit(slot, info) for every parameter; slot is the Linear&, Vector& or HashTable& in `weights` that
// holds it (sized by the walk).
template <class Visitor>
void for_each_parameter(const Config& config, Weights& weights, Visitor&& visit) {
  parameters_detail::Walk<std::remove_reference_t<Visitor>>(config, visit).model(weights);
}

// The stored tensors of a parameter: itself and, for a quantised linear, its scales.
struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;  // as in the file
};

// The published dtype of a parameter's role under `config`'s storage formats.
enum class StorageFormat : std::uint8_t { published, bf16, f32 };
std::vector<StoredTensor> stored_tensors(const Config& config, const ParameterInfo& info,
                                         StorageFormat format);

// "layers.3.attn.wq_a.weight" -> "layers.3.attn.wq_a.scale"
std::string scale_name(std::string_view weight_name);
// [ceil(out/128), ceil(in/128)] or [out, in/32].
Shape scale_shape(Linear::Format format, std::int64_t out, std::int64_t in);

// What a tensor that the walk does not name is, in a checkpoint of `config`.
enum class ExtraTensor : std::uint8_t {
  unknown,  // not of this model
  copy,     // embed or head again, under mtp.0, as -Base releases have them; not read
  drafter,  // of the DSpark drafter that 0731 releases keep under mtp.*; not used
};
ExtraTensor classify_extra(const Config& config, std::string_view name);

}  // namespace hadal
