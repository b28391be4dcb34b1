// A model and a corpus small enough to train in a test.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "train/recipe.h"
#include "train/token_file.h"

namespace hadal::test {

class RunDirectory {
 public:
  RunDirectory() {
    std::string path = (std::filesystem::temp_directory_path() / "hadal-train-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) ADD_FAILURE() << "cannot make " << path;
    path_ = path;
  }
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;
  ~RunDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Three layers (sliding, CSA, HCA), an MTP block, hash routing in the first layer. `d`: of what a checkpoint
// stores quantised, which must then be a multiple of 128.
inline std::string tiny_model(int d = 64, const std::string& expert_dtype = "float32") {
  return fmt::format(R"({{
  "model_type": "deepseek_v4", "vocab_size": 64, "hidden_size": {0}, "num_hidden_layers": 3,
  "num_nextn_predict_layers": 1, "max_position_embeddings": 1024, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 128, "qk_rope_head_dim": 64, "q_lora_rank": {0}, "o_groups": 2,
  "o_lora_rank": {0}, "sliding_window": 8, "compress_ratios": [0, 4, 16, 0], "index_n_heads": 2,
  "index_head_dim": 64, "index_topk": 2, "rope_theta": 10000, "compress_rope_theta": 160000,
  "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": {0},
  "num_hash_layers": 1, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus",
  "topk_method": "noaux_tc", "norm_topk_prob": true, "swiglu_limit": 10.0, "hidden_act": "silu", "hc_mult": 2,
  "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 1,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "expert_dtype": "{1}"{2}}})",
                     d, expert_dtype,
                     expert_dtype == "fp4" ? R"(, "quantization_config": {"activation_scheme": "dynamic",
                     "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]})"
                                           : "");
}

// Tokens that can be learned: each is the one before plus a step that changes now and then.
inline void write_tiny_corpus(const std::filesystem::path& directory, std::int64_t n = 4000) {
  std::filesystem::create_directories(directory);
  std::vector<std::int32_t> tokens;
  std::int32_t token = 3;
  for (std::int64_t i = 0; i < n; ++i) {
    token = 2 + (token - 2 + 1 + static_cast<std::int32_t>(i / 97 % 5)) % 62;
    tokens.push_back(token);
  }
  ASSERT_TRUE(write_token_file(directory / "shard-00000.tok", {64, 7}, tokens, {}).has_value());
}

// `extra`: more fields, each with a comma before it. All three kinds of stages within `steps`.
inline std::string tiny_recipe(const std::filesystem::path& directory, std::int64_t steps,
                               const std::string& extra = "") {
  return fmt::format(R"({{
    "name": "tiny", "model": {{"config": {}}}, "data": {{"train": [{{"path": "{}"}}], "validation": "{}"}},
    "seed": 5, "precision": "f32", "steps": {},
    "batch": [{{"from_step": 0, "tokens": 16}}, {{"from_step": 2, "tokens": 32}}],
    "micro_batch_tokens": 16,
    "stages": [{{"from_step": 0, "length": 8}},
               {{"from_step": {}, "length": 8, "attention": "indexer", "learning_rate": 0.001}},
               {{"from_step": {}, "length": 16, "attention": "sparse"}}],
    "learning_rate": {{"peak": 0.003, "warmup_steps": 2}}, "optimizer": {{"newton_schulz": "f32"}},
    "snapshot": {{"every": 2, "keep": 2}}, "evaluation": {{"every": 4, "windows": 2}}{}}})",
                     tiny_model(), (directory / "data").string(), (directory / "data").string(), steps,
                     steps / 3, steps / 3 + 2, extra);
}

}  // namespace hadal::test
