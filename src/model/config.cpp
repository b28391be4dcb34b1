#include "model/config.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <initializer_list>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "model/config_reader.h"
#include "model/config_v32.h"

namespace hadal {
namespace {

using config_detail::excerpt;
using config_detail::Json;
using config_detail::Reader;

constexpr std::size_t kMaxListed = 1024;                // entries of a list over the layers
constexpr std::size_t kMaxText = std::size_t{1} << 20;  // a published config.json has 3 kB

constexpr std::string_view kSliding = "sliding_attention";
constexpr std::string_view kCsa = "compressed_sparse_attention";
constexpr std::string_view kHca = "heavily_compressed_attention";

// expert_dtype, as the files spell it.
constexpr std::array<std::pair<std::string_view, Linear::Format>, 4> kExpertDTypes = {
    {{"fp4", Linear::Format::fp4},
     {"fp8", Linear::Format::fp8},
     {"bfloat16", Linear::Format::bf16},
     {"float32", Linear::Format::f32}}};

// layer_types with compress_rates, the newer spelling of compress_ratios; it never lists the MTP blocks.
std::vector<std::int64_t> read_layer_types(Reader& in, const Json& types) {
  std::int64_t csa = 4, hca = 128;
  if (const Json* rates = in.find("compress_rates"); rates != nullptr && rates->is_object()) {
    if (const Json* rate = in.find(*rates, kCsa.data()))
      csa = in.integer_value("compress_rates", *rate, 4, 4);
    if (const Json* rate = in.find(*rates, kHca.data()))
      hca = in.integer_value("compress_rates", *rate, 2, 128);
  }
  if (hca == 4) in.wrong("'compress_rates' gives both attention kinds the ratio 4, which is CSA's alone");
  std::vector<std::int64_t> ratios;
  if (!types.is_array() || types.size() > kMaxListed) {
    in.wrong(fmt::format("'layer_types' is not an array of at most {} strings", kMaxListed));
    return ratios;
  }
  for (const Json& type : types) {
    if (type == kSliding)
      ratios.push_back(0);
    else if (type == kCsa)
      ratios.push_back(csa);
    else if (type == kHca)
      ratios.push_back(hca);
    else
      in.wrong(
          fmt::format("'layer_types' has {}, expected {}, {} or {}", excerpt(type), kSliding, kCsa, kHca));
  }
  return ratios;
}

// The attention kind of every block: compress_ratios, or layer_types.
std::vector<std::int64_t> read_ratios(Reader& in, const Config& c) {
  const Json* list = in.find("compress_ratios");
  const Json* types = in.find("layer_types");
  std::vector<std::int64_t> ratios, named;
  if (types != nullptr) named = read_layer_types(in, *types);
  if (list == nullptr && types == nullptr) {
    in.wrong("neither 'compress_ratios' nor 'layer_types' is there");
    return ratios;
  }
  if (list == nullptr) {
    ratios = named;
  } else if (!list->is_array() || list->size() > kMaxListed) {
    in.wrong(fmt::format("'compress_ratios' is not an array of at most {} integers", kMaxListed));
    return ratios;
  } else {
    for (const Json& item : *list) ratios.push_back(in.integer_value("compress_ratios[]", item, 0, 128));
    const std::size_t both = std::min(ratios.size(), named.size());
    for (std::size_t i = 0; i < both; ++i) {
      if (ratios[i] != named[i])
        in.wrong(fmt::format("layer {} has compression ratio {} by 'compress_ratios', {} by 'layer_types'", i,
                             ratios[i], named[i]));
    }
  }
  // The MTP blocks may be left out of the list; they see a sliding window only. A drafter's blocks may be
  // listed behind the layers.
  const auto listed = static_cast<std::int64_t>(ratios.size());
  if (listed == c.num_hidden_layers || (c.has_dspark && listed > c.num_blocks()))
    ratios.resize(static_cast<std::size_t>(c.num_blocks()), 0);
  if (static_cast<std::int64_t>(ratios.size()) != c.num_blocks()) {
    in.wrong(fmt::format("{} layers and {} MTP blocks, but {} compression ratios", c.num_hidden_layers,
                         c.num_nextn_predict_layers, listed));
    return ratios;
  }
  for (std::size_t i = 0; i < ratios.size(); ++i) {
    if (ratios[i] == 1 || (ratios[i] > 0 && 128 % ratios[i] != 0)) {
      in.wrong(fmt::format("compression ratio {}: ratios are 0 (none) or divide the page of 128 tokens",
                           ratios[i]));
    }
    if (static_cast<std::int64_t>(i) >= c.num_hidden_layers && ratios[i] != 0) {
      in.wrong(fmt::format("an MTP block has compression ratio {}, and hadal runs only 0 there", ratios[i]));
    }
  }
  return ratios;
}

std::int64_t read_hash_layers(Reader& in, const Config& c) {
  const Json* types = in.find("mlp_layer_types");
  if (types == nullptr) return in.integer("num_hash_layers", 0, c.num_hidden_layers);
  std::int64_t hash = 0;
  bool learned = false;
  if (!types->is_array() || static_cast<std::int64_t>(types->size()) != c.num_hidden_layers) {
    in.wrong(fmt::format("'mlp_layer_types' is not an array of {} strings", c.num_hidden_layers));
    return 0;
  }
  for (const Json& type : *types) {
    if (type == "hash_moe" && !learned)
      ++hash;
    else if (type == "moe")
      learned = true;
    else
      in.wrong(fmt::format("'mlp_layer_types' has {}; hash_moe layers come first, then moe", excerpt(type)));
  }
  if (const std::int64_t declared = in.integer("num_hash_layers", 0, c.num_hidden_layers, hash);
      declared != hash) {
    in.wrong(fmt::format("'num_hash_layers' is {}, but 'mlp_layer_types' begins with {} hash_moe layers",
                         declared, hash));
  }
  return hash;
}

// qk_rope_head_dim, or the share of head_dim that the newer spelling gives instead.
std::int64_t read_rope_dims(Reader& in, std::int64_t head_dim) {
  constexpr const char* kFactor = "partial_rotary_factor";
  const Json* object = &in.root();
  if (const Json* parameters = in.find("rope_parameters");
      in.find(kFactor) == nullptr && parameters != nullptr && parameters->is_object()) {
    const Json* compress = in.find(*parameters, "compress");
    object = compress != nullptr && compress->is_object() ? compress : parameters;
  }
  if (in.find("qk_rope_head_dim") != nullptr || in.find(*object, kFactor) == nullptr)
    return in.integer("qk_rope_head_dim", 2, 1 << 14);
  return static_cast<std::int64_t>(in.real(*object, kFactor, 0, 1, 0) * static_cast<double>(head_dim));
}

}  // namespace

void config_detail::read_rope(Reader& in, Config& c) {
  constexpr double kMaxTheta = 1e12;
  c.rope_theta = in.real("rope_theta", 1.001, kMaxTheta, 10000);
  c.compress_rope_theta = in.real("compress_rope_theta", 1.001, kMaxTheta, 160000);
  const Json* scaling = in.find("rope_scaling");
  if (const Json* parameters = in.find("rope_parameters"); parameters != nullptr && parameters->is_object()) {
    scaling = parameters;
    if (const Json* main = in.find(*parameters, "main"); main != nullptr && main->is_object()) {
      c.rope_theta = in.real(*main, "rope_theta", 1.001, kMaxTheta, c.rope_theta);
    }
    if (const Json* compress = in.find(*parameters, "compress");
        compress != nullptr && compress->is_object()) {
      c.compress_rope_theta = in.real(*compress, "rope_theta", 1.001, kMaxTheta, c.compress_rope_theta);
      scaling = compress;
    }
  }
  if (scaling == nullptr) return;
  if (!scaling->is_object()) return in.wrong("'rope_scaling' is not an object");
  const Json* type = in.find(*scaling, "type");
  if (type == nullptr) type = in.find(*scaling, "rope_type");
  if (type == nullptr || *type == "default") return;
  if (*type != "yarn")
    return in.wrong(fmt::format("rope scaling of type {}, and hadal knows yarn", excerpt(*type)));
  YarnScaling yarn;
  yarn.factor = in.real(*scaling, "factor", 1, 1e6, yarn.factor);
  yarn.beta_fast = in.real(*scaling, "beta_fast", 1e-3, 1e6, yarn.beta_fast);
  yarn.beta_slow = in.real(*scaling, "beta_slow", 1e-3, 1e6, yarn.beta_slow);
  yarn.original_max_position_embeddings =
      static_cast<std::int64_t>(in.real(*scaling, "original_max_position_embeddings", 0, 1e12, 0));
  if (yarn.beta_fast < yarn.beta_slow) {
    in.wrong(
        fmt::format("YaRN's beta_fast {} is smaller than its beta_slow {}", yarn.beta_fast, yarn.beta_slow));
  }
  if (yarn.original_max_position_embeddings > 0) c.rope_scaling = yarn;
}

void config_detail::read_storage(Reader& in, Config& c) {
  const Json* dtype = in.find("torch_dtype");
  if (dtype == nullptr) dtype = in.find("dtype");
  c.dense_format = dtype != nullptr && *dtype == "float32" ? Linear::Format::f32 : Linear::Format::bf16;
  const Json* expert = in.find("expert_dtype");
  if (const Json* quantisation = in.find("quantization_config"); quantisation != nullptr) {
    if (!quantisation->is_object()) return in.wrong("'quantization_config' is not an object");
    const auto only = [&](const char* key, const Json& expected) {
      const Json* value = in.find(*quantisation, key);
      if (value != nullptr && *value != expected) {
        in.wrong(fmt::format("quantization_config has {} {}, and hadal knows {}", key, excerpt(*value),
                             expected.dump()));
      }
    };
    only("quant_method", "fp8");
    only("fmt", "e4m3");
    only("scale_fmt", "ue8m0");
    only("weight_block_size", Json({128, 128}));
    c.dense_format = Linear::Format::fp8;
    if (expert == nullptr) expert = in.find(*quantisation, "expert_dtype");
  }
  c.expert_format = c.dense_format;
  if (expert == nullptr) return;
  const auto known = std::find_if(kExpertDTypes.begin(), kExpertDTypes.end(),
                                  [&](const auto& entry) { return *expert == entry.first; });
  if (known == kExpertDTypes.end())
    return in.wrong(
        fmt::format("'expert_dtype' is {}, expected fp4, fp8, bfloat16 or float32", excerpt(*expert)));
  c.expert_format = known->second;
}

namespace {

constexpr std::int64_t kMaxExperts = 1 << 19;  // over all blocks; V4-Pro has 62 x 384

// What the numbers must be to one another.
void check_agreement(Reader& in, const Config& c) {
  const auto demand = [&]<class... Args>(bool holds, fmt::format_string<Args...> text, Args&&... args) {
    if (!holds) in.wrong(fmt::format(text, std::forward<Args>(args)...));
  };
  demand(c.qk_rope_head_dim >= 2 && c.qk_rope_head_dim % 2 == 0,
         "qk_rope_head_dim {} is not a positive even number", c.qk_rope_head_dim);
  demand(c.qk_rope_head_dim < c.head_dim, "qk_rope_head_dim {} is not smaller than head_dim {}",
         c.qk_rope_head_dim, c.head_dim);
  demand((c.head_dim - c.qk_rope_head_dim) % 64 == 0,
         "head_dim {} less qk_rope_head_dim {} is not a multiple of 64, the block in which KV rows are "
         "quantised",
         c.head_dim, c.qk_rope_head_dim);
  demand(c.num_attention_heads % c.o_groups == 0, "{} attention heads do not divide into {} o_groups",
         c.num_attention_heads, c.o_groups);
  demand(c.num_experts_per_tok <= c.n_routed_experts, "{} experts per token, but only {} routed experts",
         c.num_experts_per_tok, c.n_routed_experts);
  demand(c.num_blocks() * c.n_routed_experts <= kMaxExperts,
         "{} blocks of {} experts are more than {} experts", c.num_blocks(), c.n_routed_experts, kMaxExperts);
  demand(c.bos_token_id < c.vocab_size && c.eos_token_id < c.vocab_size,
         "bos_token_id {} or eos_token_id {} lies outside the vocabulary of {}", c.bos_token_id,
         c.eos_token_id, c.vocab_size);
  const bool has_csa =
      std::find(c.compress_ratios.begin(), c.compress_ratios.end(), 4) != c.compress_ratios.end();
  if (has_csa) {
    demand(std::has_single_bit(static_cast<std::uint64_t>(c.index_head_dim)) && c.index_head_dim % 32 == 0,
           "index_head_dim {} is not a power of two of at least 32 (Hadamard rotation, FP4 blocks)",
           c.index_head_dim);
    demand(c.qk_rope_head_dim <= c.index_head_dim, "qk_rope_head_dim {} is larger than index_head_dim {}",
           c.qk_rope_head_dim, c.index_head_dim);
  }
  const bool fp4 = c.expert_format == Linear::Format::fp4;
  if (c.dense_format == Linear::Format::fp8 || fp4) {
    for (const auto& [name, value] : {std::pair<const char*, std::int64_t>{"hidden_size", c.hidden_size},
                                      {"moe_intermediate_size", c.moe_intermediate_size},
                                      {"q_lora_rank", c.q_lora_rank},
                                      {"o_groups * o_lora_rank", c.o_groups * c.o_lora_rank}}) {
      demand(value % 128 == 0, "{} is {}, not a multiple of 128, the block in which inputs are quantised",
             name, value);
    }
  }
}

constexpr std::string_view kFlash = R"({
 "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4",
 "bos_token_id": 0, "eos_token_id": 1, "expert_dtype": "fp4",
 "hc_eps": 1e-06, "hc_mult": 4, "hc_sinkhorn_iters": 20,
 "head_dim": 512, "hidden_act": "silu", "index_head_dim": 128, "index_n_heads": 64,
 "max_position_embeddings": 1048576, "n_shared_experts": 1, "norm_topk_prob": true,
 "num_experts_per_tok": 6, "num_hash_layers": 3, "num_key_value_heads": 1, "num_nextn_predict_layers": 1,
 "o_lora_rank": 1024, "qk_rope_head_dim": 64,
 "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                         "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
 "rms_norm_eps": 1e-06,
 "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16,
                  "original_max_position_embeddings": 65536, "type": "yarn"},
 "rope_theta": 10000, "compress_rope_theta": 160000, "scoring_func": "sqrtsoftplus",
 "sliding_window": 128, "swiglu_limit": 10.0, "tie_word_embeddings": false, "topk_method": "noaux_tc",
 "torch_dtype": "bfloat16", "vocab_size": 129280,
 "hidden_size": 4096, "moe_intermediate_size": 2048, "num_hidden_layers": 43, "num_attention_heads": 64,
 "q_lora_rank": 1024, "o_groups": 8, "n_routed_experts": 256, "routed_scaling_factor": 1.5,
 "index_topk": 512})";

}  // namespace

Result<Config> parse_config(std::string_view json_text) {
  if (json_text.size() > kMaxText) {
    return fail(ErrorCode::corrupt, fmt::format("{} bytes are too many for a config.json", json_text.size()));
  }
  const Json root = Json::parse(json_text, nullptr, false);
  if (!root.is_object()) return fail(ErrorCode::corrupt, "not a JSON object");
  Reader in(root);
  Config c;
  if (const Json* type = in.find("model_type"); type != nullptr && *type != "deepseek_v4") {
    if (*type == "deepseek_v32") return config_detail::parse_v32(root);
    return fail(ErrorCode::unsupported,
                fmt::format("model_type is {}, and hadal runs only deepseek_v4 and, to compare, deepseek_v32",
                            excerpt(*type)));
  }
  in.only("scoring_func", "sqrtsoftplus");
  in.only("topk_method", "noaux_tc");
  in.only("hidden_act", "silu");
  in.only("num_key_value_heads", 1);
  in.only("n_shared_experts", 1);
  in.only("tie_word_embeddings", false);
  in.only("attention_bias", false);
  in.only("norm_topk_prob", true);

  // The bounds keep every product of sizes far below 2^63.
  c.vocab_size = in.integer("vocab_size", 2, 1 << 24);
  c.hidden_size = in.integer("hidden_size", 32, 1 << 17);
  c.num_hidden_layers = in.integer("num_hidden_layers", 1, 1000);
  c.num_nextn_predict_layers = in.integer("num_nextn_predict_layers", 0, 8, 0);
  c.max_position_embeddings = in.integer("max_position_embeddings", 1, std::int64_t{1} << 32);
  c.num_attention_heads = in.integer("num_attention_heads", 1, 4096);
  c.head_dim = in.integer("head_dim", 4, 1 << 14);
  c.qk_rope_head_dim = read_rope_dims(in, c.head_dim);
  c.q_lora_rank = in.integer("q_lora_rank", 1, 1 << 16);
  c.o_groups = in.integer("o_groups", 1, 4096);
  c.o_lora_rank = in.integer("o_lora_rank", 1, 1 << 16);
  c.sliding_window = in.integer("sliding_window", 1, 1 << 16);
  // The blocks under mtp.* are then the drafter's, which is another architecture: no MTP block is left.
  for (const auto& [key, value] : root.items()) c.has_dspark = c.has_dspark || key.starts_with("dspark_");
  if (c.has_dspark) c.num_nextn_predict_layers = 0;
  c.compress_ratios = read_ratios(in, c);
  c.index_n_heads = in.integer("index_n_heads", 1, 4096);
  c.index_head_dim = in.integer("index_head_dim", 1, 1 << 13);
  c.index_topk = in.integer("index_topk", 1, 1 << 20);
  config_detail::read_rope(in, c);
  c.n_routed_experts = in.integer("n_routed_experts", 1, 1 << 14);
  c.num_experts_per_tok = in.integer("num_experts_per_tok", 1, 256);
  c.moe_intermediate_size = in.integer("moe_intermediate_size", 1, 1 << 17);
  c.num_hash_layers = read_hash_layers(in, c);
  if (in.find("routed_scaling_factor") == nullptr) in.wrong("'routed_scaling_factor' is missing");
  c.routed_scaling_factor = in.real("routed_scaling_factor", 1e-6, 1e6, 1);
  c.swiglu_limit = in.real("swiglu_limit", 1e-6, 1e30, 10);
  c.hc_mult = in.integer("hc_mult", 1, 16, 4);
  c.hc_sinkhorn_iters = in.integer("hc_sinkhorn_iters", 1, 1000, 20);
  c.hc_eps = in.real("hc_eps", 0, 1, 1e-6);
  c.rms_norm_eps = in.real("rms_norm_eps", 0, 1, 1e-6);
  c.bos_token_id = in.integer("bos_token_id", 0, 1 << 24, 0);
  c.eos_token_id = in.integer("eos_token_id", 0, 1 << 24, 1);
  config_detail::read_storage(in, c);
  if (in.problem().empty()) check_agreement(in, c);
  if (!in.problem().empty()) return fail(ErrorCode::corrupt, in.problem());
  return c;
}

Result<Config> load_config(const std::filesystem::path& model_directory) {
  const std::filesystem::path path = model_directory / "config.json";
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(path, kMaxText));
  auto config = parse_config(text);
  if (!config) return tl::unexpected(std::move(config).error().with_context(path.string()));
  return config;
}

std::string config_to_json(const Config& c) {
  if (c.v32) return config_detail::v32_to_json(c);
  nlohmann::ordered_json out = {
      {"architectures", {"DeepseekV4ForCausalLM"}},
      {"model_type", "deepseek_v4"},
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"num_hidden_layers", c.num_hidden_layers},
      {"num_nextn_predict_layers", c.num_nextn_predict_layers},
      {"max_position_embeddings", c.max_position_embeddings},
      {"num_attention_heads", c.num_attention_heads},
      {"num_key_value_heads", 1},
      {"head_dim", c.head_dim},
      {"qk_rope_head_dim", c.qk_rope_head_dim},
      {"q_lora_rank", c.q_lora_rank},
      {"o_groups", c.o_groups},
      {"o_lora_rank", c.o_lora_rank},
      {"sliding_window", c.sliding_window},
      {"compress_ratios", c.compress_ratios},
      {"index_n_heads", c.index_n_heads},
      {"index_head_dim", c.index_head_dim},
      {"index_topk", c.index_topk},
      {"rope_theta", c.rope_theta},
      {"compress_rope_theta", c.compress_rope_theta},
      {"rope_scaling", nullptr},
      {"n_routed_experts", c.n_routed_experts},
      {"n_shared_experts", 1},
      {"num_experts_per_tok", c.num_experts_per_tok},
      {"moe_intermediate_size", c.moe_intermediate_size},
      {"num_hash_layers", c.num_hash_layers},
      {"routed_scaling_factor", c.routed_scaling_factor},
      {"norm_topk_prob", true},
      {"scoring_func", "sqrtsoftplus"},
      {"topk_method", "noaux_tc"},
      {"swiglu_limit", c.swiglu_limit},
      {"hidden_act", "silu"},
      {"hc_mult", c.hc_mult},
      {"hc_sinkhorn_iters", c.hc_sinkhorn_iters},
      {"hc_eps", c.hc_eps},
      {"rms_norm_eps", c.rms_norm_eps},
      {"bos_token_id", c.bos_token_id},
      {"eos_token_id", c.eos_token_id},
      {"attention_bias", false},
      {"tie_word_embeddings", false},
      {"torch_dtype", c.dense_format == Linear::Format::f32 ? "float32" : "bfloat16"},
  };
  if (c.rope_scaling) {
    out["rope_scaling"] = {
        {"type", "yarn"},
        {"factor", c.rope_scaling->factor},
        {"original_max_position_embeddings", c.rope_scaling->original_max_position_embeddings},
        {"beta_fast", c.rope_scaling->beta_fast},
        {"beta_slow", c.rope_scaling->beta_slow}};
  }
  if (c.expert_format != c.dense_format || c.dense_format == Linear::Format::fp8) {
    for (const auto& [name, format] : kExpertDTypes) {
      if (format == c.expert_format) out["expert_dtype"] = name;
    }
  }
  if (c.dense_format == Linear::Format::fp8) {
    out["quantization_config"] = {{"activation_scheme", "dynamic"},
                                  {"fmt", "e4m3"},
                                  {"quant_method", "fp8"},
                                  {"scale_fmt", "ue8m0"},
                                  {"weight_block_size", {128, 128}}};
  }
  return out.dump(2) + "\n";
}

Result<Config> preset_config(std::string_view name) {
  if (name == "v3.2") return config_detail::v32_preset();
  Json root = Json::parse(kFlash);
  std::vector<int> ratios;
  if (name == "flash") {
    ratios = {0, 0};
  } else if (name == "pro") {
    ratios = {128, 128};
    root.update({{"hidden_size", 7168},
                 {"moe_intermediate_size", 3072},
                 {"num_hidden_layers", 61},
                 {"num_attention_heads", 128},
                 {"q_lora_rank", 1536},
                 {"o_groups", 16},
                 {"n_routed_experts", 384},
                 {"routed_scaling_factor", 2.5},
                 {"index_topk", 1024}});
  } else {
    return fail(ErrorCode::invalid_argument, fmt::format("preset '{}': there are flash, pro and v3.2", name));
  }
  // Then 4 and 128 in turn, ending with 4; the MTP block slides.
  const auto layers = root["num_hidden_layers"].get<std::size_t>();
  while (ratios.size() < layers) ratios.push_back(ratios.size() % 2 == 0 ? 4 : 128);
  ratios.push_back(0);
  root["compress_ratios"] = ratios;
  return parse_config(root.dump());
}

Result<Config> cut_config(Config config, std::int64_t layers, std::int64_t experts) {
  if (layers < 0 || layers > config.num_hidden_layers) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} layers: the model has {}, and a cut keeps 1 to all of them", layers,
                            config.num_hidden_layers));
  }
  if (experts < 0 || experts > config.n_routed_experts ||
      (experts > 0 && experts < config.num_experts_per_tok)) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} experts: the model has {} and sends a token to {} of them", experts,
                            config.n_routed_experts, config.num_experts_per_tok));
  }
  if (layers > 0) {
    config.compress_ratios.erase(config.compress_ratios.begin() + layers,
                                 config.compress_ratios.begin() + config.num_hidden_layers);
    config.num_hidden_layers = layers;
    config.num_hash_layers = std::min(config.num_hash_layers, layers);
    if (config.v32) config.v32->first_k_dense_replace = std::min(config.v32->first_k_dense_replace, layers);
  }
  if (experts > 0) {
    config.n_routed_experts = experts;
    // Groups that cannot be kept are given up.
    if (V32Config* v = config.v32 ? &*config.v32 : nullptr;
        v != nullptr && (experts % v->n_group != 0 || experts / v->n_group < 2 ||
                         v->topk_group * (experts / v->n_group) < config.num_experts_per_tok)) {
      v->n_group = v->topk_group = 1;
    }
  }
  return config;
}

}  // namespace hadal
