#include "model/config_v32.h"

#include <bit>
#include <limits>

namespace hadal::config_detail {
namespace {

// The published file, without what says nothing about the model.
constexpr std::string_view kV32 = R"({
 "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
 "attention_bias": false, "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 3,
 "hidden_act": "silu", "hidden_size": 7168, "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
 "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
 "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
 "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128, "num_experts_per_tok": 8,
 "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
 "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
 "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                         "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
 "rms_norm_eps": 1e-06,
 "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                  "original_max_position_embeddings": 4096, "type": "yarn"},
 "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
 "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128,
 "vocab_size": 129280})";

void read_scaling(Reader& in, Config& c) {
  read_rope(in, c);
  const Json* scaling = in.find("rope_scaling");
  if (const Json* parameters = in.find("rope_parameters"); parameters != nullptr && parameters->is_object()) {
    scaling = parameters;
    c.rope_theta = in.real(*parameters, "rope_theta", 1.001, 1e12, c.rope_theta);
  }
  c.compress_rope_theta = c.rope_theta;
  if (!c.rope_scaling || scaling == nullptr || !scaling->is_object()) return;
  const double mscale = in.real(*scaling, "mscale", 0, 100, 1);
  c.v32->mscale_all_dim = in.real(*scaling, "mscale_all_dim", 0, 100, 0);
  if (mscale != c.v32->mscale_all_dim) {
    // Rotary angles would be scaled by the ratio of the two.
    in.wrong(fmt::format("'mscale' {} and 'mscale_all_dim' {} differ, and hadal runs only equal ones", mscale,
                         c.v32->mscale_all_dim));
  }
}

void check_agreement(Reader& in, const Config& c) {
  const auto demand = [&]<class... Args>(bool holds, fmt::format_string<Args...> text, Args&&... args) {
    if (!holds) in.wrong(fmt::format(text, std::forward<Args>(args)...));
  };
  demand(c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim {} is not even", c.qk_rope_head_dim);
  demand(c.v32->kv_lora_rank % 128 == 0,
         "kv_lora_rank {} is not a multiple of 128, the block in which cached rows are quantised",
         c.v32->kv_lora_rank);
  demand(std::has_single_bit(static_cast<std::uint64_t>(c.index_head_dim)) && c.index_head_dim % 128 == 0,
         "index_head_dim {} is not a power of two of at least 128 (Hadamard rotation, FP8 blocks)",
         c.index_head_dim);
  demand(c.qk_rope_head_dim <= c.index_head_dim, "qk_rope_head_dim {} is larger than index_head_dim {}",
         c.qk_rope_head_dim, c.index_head_dim);
  demand(c.n_routed_experts % c.v32->n_group == 0, "{} routed experts do not divide into {} groups",
         c.n_routed_experts, c.v32->n_group);
  demand(c.v32->topk_group <= c.v32->n_group &&
             c.num_experts_per_tok <= c.v32->topk_group * (c.n_routed_experts / c.v32->n_group),
         "{} experts per token out of {} of {} groups of {}", c.num_experts_per_tok, c.v32->topk_group,
         c.v32->n_group, c.n_routed_experts / c.v32->n_group);
  demand(c.v32->n_group == 1 || c.n_routed_experts / c.v32->n_group >= 2,
         "a group of one expert has no two best ones to be judged by");
  demand(c.bos_token_id < c.vocab_size && c.eos_token_id < c.vocab_size,
         "bos_token_id {} or eos_token_id {} lies outside the vocabulary of {}", c.bos_token_id,
         c.eos_token_id, c.vocab_size);
  if (c.dense_format != Linear::Format::fp8) return;
  for (const auto& [name, value] :
       {std::pair<const char*, std::int64_t>{"hidden_size", c.hidden_size},
        {"moe_intermediate_size", c.moe_intermediate_size},
        {"intermediate_size", c.v32->intermediate_size},
        {"q_lora_rank", c.q_lora_rank},
        {"num_attention_heads * v_head_dim", c.num_attention_heads * c.v32->v_head_dim}}) {
    demand(value % 128 == 0, "{} is {}, not a multiple of 128, the block in which inputs are quantised", name,
           value);
  }
}

}  // namespace

Result<Config> parse_v32(const Json& root) {
  Reader in(root);
  Config c;
  V32Config& v = c.v32.emplace();
  in.only("scoring_func", "sigmoid");
  in.only("topk_method", "noaux_tc");
  in.only("hidden_act", "silu");
  in.only("n_shared_experts", 1);
  in.only("moe_layer_freq", 1);
  in.only("tie_word_embeddings", false);
  in.only("attention_bias", false);
  in.only("norm_topk_prob", true);

  // The bounds keep every product of sizes far below 2^63.
  c.vocab_size = in.integer("vocab_size", 2, 1 << 24);
  c.hidden_size = in.integer("hidden_size", 32, 1 << 17);
  c.num_hidden_layers = in.integer("num_hidden_layers", 1, 1000);
  c.max_position_embeddings = in.integer("max_position_embeddings", 1, std::int64_t{1} << 32);
  c.num_attention_heads = in.integer("num_attention_heads", 1, 4096);
  v.kv_lora_rank = in.integer("kv_lora_rank", 1, 1 << 13);
  v.qk_nope_head_dim = in.integer("qk_nope_head_dim", 1, 1 << 13);
  v.v_head_dim = in.integer("v_head_dim", 1, 1 << 13);
  c.qk_rope_head_dim = in.integer("qk_rope_head_dim", 2, 1 << 13);
  c.head_dim = v.kv_lora_rank + c.qk_rope_head_dim;
  c.q_lora_rank = in.integer("q_lora_rank", 1, 1 << 16);
  c.o_groups = c.o_lora_rank = 1;  // one projection of all heads
  c.sliding_window = 0;
  c.compress_ratios.assign(static_cast<std::size_t>(c.num_hidden_layers), 1);
  c.index_n_heads = in.integer("index_n_heads", 1, 4096);
  c.index_head_dim = in.integer("index_head_dim", 1, 1 << 10);
  c.index_topk = in.integer("index_topk", 1, 1 << 20);
  read_scaling(in, c);
  v.first_k_dense_replace = in.integer("first_k_dense_replace", 0, c.num_hidden_layers);
  v.intermediate_size = in.integer("intermediate_size", 1, 1 << 18);
  c.n_routed_experts = in.integer("n_routed_experts", 1, 1 << 14);
  c.num_experts_per_tok = in.integer("num_experts_per_tok", 1, 256);
  v.n_group = in.integer("n_group", 1, 1 << 14);
  v.topk_group = in.integer("topk_group", 1, 1 << 14);
  c.moe_intermediate_size = in.integer("moe_intermediate_size", 1, 1 << 17);
  if (in.find("routed_scaling_factor") == nullptr) in.wrong("'routed_scaling_factor' is missing");
  c.routed_scaling_factor = in.real("routed_scaling_factor", 1e-6, 1e6, 1);
  c.swiglu_limit = std::numeric_limits<double>::infinity();
  c.hc_mult = 1;  // one residual stream, added to
  c.rms_norm_eps = in.real("rms_norm_eps", 0, 1, 1e-6);
  c.bos_token_id = in.integer("bos_token_id", 0, 1 << 24, 0);
  c.eos_token_id = in.integer("eos_token_id", 0, 1 << 24, 1);
  read_storage(in, c);
  if (in.problem().empty()) check_agreement(in, c);
  if (!in.problem().empty()) return fail(ErrorCode::corrupt, in.problem());
  return c;
}

std::string v32_to_json(const Config& c) {
  nlohmann::ordered_json out = nlohmann::ordered_json::parse(kV32);
  out.update({{"vocab_size", c.vocab_size},
              {"hidden_size", c.hidden_size},
              {"num_hidden_layers", c.num_hidden_layers},
              {"num_nextn_predict_layers", 0},
              {"max_position_embeddings", c.max_position_embeddings},
              {"num_attention_heads", c.num_attention_heads},
              {"num_key_value_heads", c.num_attention_heads},
              {"kv_lora_rank", c.v32->kv_lora_rank},
              {"qk_nope_head_dim", c.v32->qk_nope_head_dim},
              {"qk_rope_head_dim", c.qk_rope_head_dim},
              {"v_head_dim", c.v32->v_head_dim},
              {"q_lora_rank", c.q_lora_rank},
              {"index_n_heads", c.index_n_heads},
              {"index_head_dim", c.index_head_dim},
              {"index_topk", c.index_topk},
              {"rope_theta", c.rope_theta},
              {"rope_scaling", nullptr},
              {"first_k_dense_replace", c.v32->first_k_dense_replace},
              {"intermediate_size", c.v32->intermediate_size},
              {"n_routed_experts", c.n_routed_experts},
              {"num_experts_per_tok", c.num_experts_per_tok},
              {"n_group", c.v32->n_group},
              {"topk_group", c.v32->topk_group},
              {"moe_intermediate_size", c.moe_intermediate_size},
              {"routed_scaling_factor", c.routed_scaling_factor},
              {"rms_norm_eps", c.rms_norm_eps},
              {"bos_token_id", c.bos_token_id},
              {"eos_token_id", c.eos_token_id},
              {"torch_dtype", c.dense_format == Linear::Format::f32 ? "float32" : "bfloat16"}});
  if (c.dense_format != Linear::Format::fp8) out.erase("quantization_config");
  if (c.rope_scaling) {
    out["rope_scaling"] = {
        {"type", "yarn"},
        {"factor", c.rope_scaling->factor},
        {"original_max_position_embeddings", c.rope_scaling->original_max_position_embeddings},
        {"beta_fast", c.rope_scaling->beta_fast},
        {"beta_slow", c.rope_scaling->beta_slow},
        {"mscale", c.v32->mscale_all_dim},
        {"mscale_all_dim", c.v32->mscale_all_dim}};
  }
  return out.dump(2) + "\n";
}

Result<Config> v32_preset() {
  return parse_v32(Json::parse(kV32));
}

}  // namespace hadal::config_detail
