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
// Of DeepSeek-V3.2 (src/model/mla.h).
struct DsaIndexerWeights {
  Linear wq_b;                 // [index heads * dim, q_lora]
  Linear wk;                   // [dim, d]
  Vector k_norm, k_norm_bias;  // [dim]: a LayerNorm
  Linear weights_proj;         // [index heads, d]
};
struct MlaWeights {
  Linear q_a_proj;                // [q_lora, d]
  Vector q_a_layernorm;           // [q_lora]
  Linear q_b_proj;                // [H*(nope+rope), q_lora]
  Linear kv_a_proj;               // [kv_lora+rope, d], kv_a_proj_with_mqa
  Vector kv_a_layernorm;          // [kv_lora]
  Linear kv_b_proj;               // [H*(nope+v), kv_lora]; runs as the two parts below
  Linear o_proj;                  // [d, H*v]
  Linear absorbed_q, absorbed_v;  // [H*kv_lora, nope], [H*v, kv_lora]: made at load (src/model/absorb.h)
  DsaIndexerWeights indexer;
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
  MlaWeights mla;  // V3.2, instead of attn
  Expert dense;    // V3.2, instead of ffn in its first layers
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

// The same for DeepSeek-V3.2, by its published names. Its MTP layer is left out.
template <class Visitor>
class WalkV32 {
 public:
  WalkV32(const Config& config, Visitor& visit) : c_(config), visit_(visit) {}

  void model(Weights& w) {
    const auto d = c_.hidden_size;
    emit(w.embed, "model.embed_tokens.weight", {c_.vocab_size, d}, Role::embedding);
    emit(w.head, "lm_head.weight", {c_.vocab_size, d}, Role::head);
    emit(w.norm, "model.norm.weight", {d}, Role::norm);
    w.layers.resize(static_cast<std::size_t>(c_.num_hidden_layers));
    for (std::size_t i = 0; i < w.layers.size(); ++i) {
      block_ = static_cast<std::int64_t>(i);
      const std::string p = "model.layers." + std::to_string(i) + ".";
      emit(w.layers[i].attn_norm, p + "input_layernorm.weight", {d}, Role::norm);
      attention(w.layers[i].mla, p + "self_attn.");
      emit(w.layers[i].ffn_norm, p + "post_attention_layernorm.weight", {d}, Role::norm);
      if (c_.dense_ffn(block_)) {
        expert(w.layers[i].dense, p + "mlp.", Role::shared_expert, c_.v32->intermediate_size);
      } else {
        moe(w.layers[i].ffn, p + "mlp.");
      }
    }
    block_ = -1;
  }

 private:
  template <class Slot>
  void emit(Slot& slot, std::string name, Shape shape, Role role, std::int64_t expert = -1) {
    visit_(slot, ParameterInfo{std::move(name), std::move(shape), role, block_, expert});
  }

  void attention(MlaWeights& w, const std::string& p) {
    const auto d = c_.hidden_size, heads = c_.num_attention_heads, rope = c_.qk_rope_head_dim;
    const V32Config& v = *c_.v32;
    emit(w.q_a_proj, p + "q_a_proj.weight", {c_.q_lora_rank, d}, Role::attention_projection);
    emit(w.q_a_layernorm, p + "q_a_layernorm.weight", {c_.q_lora_rank}, Role::norm);
    emit(w.q_b_proj, p + "q_b_proj.weight", {heads * (v.qk_nope_head_dim + rope), c_.q_lora_rank},
         Role::attention_projection);
    emit(w.kv_a_proj, p + "kv_a_proj_with_mqa.weight", {v.kv_lora_rank + rope, d},
         Role::attention_projection);
    emit(w.kv_a_layernorm, p + "kv_a_layernorm.weight", {v.kv_lora_rank}, Role::norm);
    emit(w.kv_b_proj, p + "kv_b_proj.weight", {heads * (v.qk_nope_head_dim + v.v_head_dim), v.kv_lora_rank},
         Role::attention_projection);
    emit(w.o_proj, p + "o_proj.weight", {d, heads * v.v_head_dim}, Role::attention_projection);
    const auto index_dim = c_.index_head_dim;
    emit(w.indexer.wq_b, p + "indexer.wq_b.weight", {c_.index_n_heads * index_dim, c_.q_lora_rank},
         Role::attention_projection);
    emit(w.indexer.wk, p + "indexer.wk.weight", {index_dim, d}, Role::attention_projection);
    emit(w.indexer.k_norm, p + "indexer.k_norm.weight", {index_dim}, Role::norm);
    emit(w.indexer.k_norm_bias, p + "indexer.k_norm.bias", {index_dim},
         Role::router_bias);  // as small, as F32
    emit(w.indexer.weights_proj, p + "indexer.weights_proj.weight", {c_.index_n_heads, d},
         Role::index_weights);
  }

  void expert(Expert& w, const std::string& p, Role role, std::int64_t inter, std::int64_t index = -1) {
    const auto d = c_.hidden_size;
    emit(w.w1, p + "gate_proj.weight", {inter, d}, role, index);
    emit(w.w2, p + "down_proj.weight", {d, inter}, role, index);
    emit(w.w3, p + "up_proj.weight", {inter, d}, role, index);
  }

  void moe(MoeWeights& w, const std::string& p) {
    emit(w.gate, p + "gate.weight", {c_.n_routed_experts, c_.hidden_size}, Role::router);
    emit(w.bias, p + "gate.e_score_correction_bias", {c_.n_routed_experts}, Role::router_bias);
    w.experts.resize(static_cast<std::size_t>(c_.n_routed_experts));
    for (std::size_t e = 0; e < w.experts.size(); ++e) {
      expert(w.experts[e], p + "experts." + std::to_string(e) + ".", Role::expert, c_.moe_intermediate_size,
             static_cast<std::int64_t>(e));
    }
    expert(w.shared, p + "shared_experts.", Role::shared_expert, c_.moe_intermediate_size);
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
  using V = std::remove_reference_t<Visitor>;
  if (config.v32) return parameters_detail::WalkV32<V>(config, visit).model(weights);
  parameters_detail::Walk<V>(config, visit).model(weights);
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

// "layers.3.attn.wq_a.weight" -> "layers.3.attn.wq_a.scale"; of V3.2, whose names begin with "model.",
// "...weight_scale_inv"
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
