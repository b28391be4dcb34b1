// The hyper-parameters of a DeepSeek-V4 model, or of DeepSeek-V3.2, which it is measured against, as in
// config.json (docs/formats.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "ops/linear.h"

namespace hadal {

// What a layer's attention sees beside its sliding window (report, section 2.3).
enum class AttentionKind : std::uint8_t {
  sliding,  // compress ratio 0: nothing
  csa,      // ratio 4: overlapping compressor, the lightning indexer picks index_topk rows
  hca,      // any other ratio: plain compressor, all rows
  dsa,      // ratio 1, DeepSeek-V3.2 only: every token is a row, the indexer picks index_topk
};

struct YarnScaling {
  double factor = 16;
  std::int64_t original_max_position_embeddings = 65536;
  double beta_fast = 32;
  double beta_slow = 1;

  bool operator==(const YarnScaling&) const = default;
};

// What DeepSeek-V3.2 has and V4 has not (src/model/mla.h). Its other numbers are those of Config, where
// head_dim is the width of a cached row, kv_lora_rank + qk_rope_head_dim; the window is 0, hc_mult 1, every
// ratio 1.
struct V32Config {
  std::int64_t kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 0;
  std::int64_t v_head_dim = 0;
  std::int64_t first_k_dense_replace = 0;  // layers whose feed-forward network is one dense expert
  std::int64_t intermediate_size = 0;      // of these
  std::int64_t n_group = 1;                // of routed experts
  std::int64_t topk_group = 1;             // groups that a token's experts may be in
  double mscale_all_dim = 0;               // YaRN: of the scores

  bool operator==(const V32Config&) const = default;
};

// Every count is positive and small enough that no product of two of them overflows 63 bits; config.cpp
// checks this and the divisibility that the model relies on, once, so that nobody else has to.
struct Config {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;  // d
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_nextn_predict_layers = 0;  // MTP blocks
  std::int64_t max_position_embeddings = 0;

  // attention
  std::int64_t num_attention_heads = 0;  // H
  std::int64_t head_dim = 0;             // c
  std::int64_t qk_rope_head_dim = 0;     // r, the last r of c
  std::int64_t q_lora_rank = 0;
  std::int64_t o_groups = 0;
  std::int64_t o_lora_rank = 0;
  std::int64_t sliding_window = 0;            // w
  std::vector<std::int64_t> compress_ratios;  // [num_hidden_layers + num_nextn_predict_layers]
  std::int64_t index_n_heads = 0;
  std::int64_t index_head_dim = 0;
  std::int64_t index_topk = 0;
  double rope_theta = 10000;                // sliding layers
  double compress_rope_theta = 160000;      // layers with a compressor
  std::optional<YarnScaling> rope_scaling;  // layers with a compressor; absent: no YaRN

  // mixture of experts
  std::int64_t n_routed_experts = 0;
  std::int64_t n_shared_experts = 1;
  std::int64_t num_experts_per_tok = 0;
  std::int64_t moe_intermediate_size = 0;
  std::int64_t num_hash_layers = 0;
  double routed_scaling_factor = 1;
  double swiglu_limit = 10;

  // mHC (manifold-constrained hyper-connections)
  std::int64_t hc_mult = 4;  // n
  std::int64_t hc_sinkhorn_iters = 20;
  double hc_eps = 1e-6;

  double rms_norm_eps = 1e-6;
  std::int64_t bos_token_id = 0;
  std::int64_t eos_token_id = 1;

  // Storage, as the file declares it; used by init and by the inventory of a preset.
  Linear::Format expert_format = Linear::Format::fp4;  // routed experts
  Linear::Format dense_format = Linear::Format::fp8;   // every other quantised linear
  // 0731 releases: mtp.* holds the DSpark drafter instead of MTP blocks (num_nextn_predict_layers is 0 here,
  // whatever the file says), and the chat dialect is v4-0731. Not written by config_to_json.
  bool has_dspark = false;
  std::optional<V32Config> v32;  // there: the model is DeepSeek-V3.2

  bool operator==(const Config&) const = default;

  std::int64_t num_blocks() const { return num_hidden_layers + num_nextn_predict_layers; }
  AttentionKind attention_kind(std::int64_t block) const {
    const std::int64_t ratio = compress_ratios[static_cast<std::size_t>(block)];
    return ratio == 0   ? AttentionKind::sliding
           : ratio == 1 ? AttentionKind::dsa
           : ratio == 4 ? AttentionKind::csa
                        : AttentionKind::hca;
  }
  std::int64_t compress_ratio(std::int64_t block) const {
    return compress_ratios[static_cast<std::size_t>(block)];
  }
  // V3.2: whether the block's feed-forward network is a dense one.
  bool dense_ffn(std::int64_t block) const { return v32 && block < v32->first_k_dense_replace; }
  // MTP blocks never route by hash.
  bool hash_routed(std::int64_t block) const { return block < num_hash_layers && block < num_hidden_layers; }
};

// From the text of a config.json, in the published spelling (compress_ratios, num_hash_layers, rope_scaling)
// or the newer one (layer_types, compress_rates, mlp_layer_types, rope_parameters). Errors name the key, its
// value and what was expected: unsupported (another model_type), corrupt (missing, absurd or contradictory
// numbers).
Result<Config> parse_config(std::string_view json_text);
Result<Config> load_config(const std::filesystem::path& model_directory);

// The text of the config.json that describes `config`, in the published spelling.
std::string config_to_json(const Config& config);

// "flash", "pro" or "v3.2": the published shapes.
Result<Config> preset_config(std::string_view name);

// The first `layers` blocks of the model with their own attention kinds (the MTP block stays the last), and
// `experts` routed experts; 0 keeps what the config has. The run of layers still starts with the hash layers.
Result<Config> cut_config(Config config, std::int64_t layers, std::int64_t experts);

}  // namespace hadal
