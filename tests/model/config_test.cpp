// config.json: both spellings give the same Config, and numbers that are absurd or contradict one another are
// refused by name.
#include "model/config.h"

#include <cstdlib>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"

namespace hadal {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

std::string data_file(const std::string& name) {
  const auto text = read_file(std::filesystem::path(HADAL_TEST_DATA) / "configs" / name);
  EXPECT_TRUE(text.has_value());
  return text.value_or("");
}

Config parsed(std::string_view text) {
  const auto config = parse_config(text);
  EXPECT_TRUE(config.has_value()) << config.error().message();
  return config.value_or(Config{});
}

Json flash() {
  return Json::parse(config_to_json(*preset_config("flash")));
}

// The Flash config with one thing changed is refused with this message.
void expect_refused(const std::function<void(Json&)>& change, std::string_view part,
                    ErrorCode code = ErrorCode::corrupt) {
  Json json = flash();
  change(json);
  const auto config = parse_config(json.dump());
  ASSERT_FALSE(config.has_value()) << "accepted, expected an error with: " << part;
  EXPECT_EQ(config.error().code(), code);
  EXPECT_THAT(config.error().message(), HasSubstr(part));
  EXPECT_THAT(config.error().message(), testing::Not(HasSubstr("\n")));
  EXPECT_LT(config.error().message().size(), 300U);
}

TEST(Config, PresetsAreThePublishedShapes) {
  const auto f = preset_config("flash");
  ASSERT_TRUE(f.has_value()) << f.error().message();
  EXPECT_EQ(f->num_hidden_layers, 43);
  EXPECT_EQ(f->hidden_size, 4096);
  EXPECT_EQ(f->compress_ratios.size(), 44U);
  EXPECT_EQ(std::count(f->compress_ratios.begin(), f->compress_ratios.end(), 4), 21);
  EXPECT_EQ(std::count(f->compress_ratios.begin(), f->compress_ratios.end(), 128), 20);
  EXPECT_EQ(f->compress_ratio(0), 0);
  EXPECT_EQ(f->compress_ratio(42), 4);
  EXPECT_EQ(f->compress_ratio(43), 0);
  EXPECT_EQ(f->dense_format, Linear::Format::fp8);
  EXPECT_EQ(f->expert_format, Linear::Format::fp4);
  ASSERT_TRUE(f->rope_scaling.has_value());
  EXPECT_EQ(f->rope_scaling->original_max_position_embeddings, 65536);

  const auto p = preset_config("pro");
  ASSERT_TRUE(p.has_value()) << p.error().message();
  EXPECT_EQ(p->num_hidden_layers, 61);
  EXPECT_EQ(p->compress_ratios.size(), 62U);
  EXPECT_EQ(std::count(p->compress_ratios.begin(), p->compress_ratios.end(), 4), 30);
  EXPECT_EQ(std::count(p->compress_ratios.begin(), p->compress_ratios.end(), 128), 31);
  EXPECT_EQ(p->index_topk, 1024);
  EXPECT_EQ(p->o_groups, 16);
  EXPECT_FALSE(preset_config("medium").has_value());
}

TEST(Config, WritesWhatItReads) {
  for (const char* name : {"flash", "pro"}) {
    const Config config = *preset_config(name);
    EXPECT_EQ(parsed(config_to_json(config)), config) << name;
  }
  Config config = parsed(data_file("t1.json"));
  EXPECT_EQ(parsed(config_to_json(config)), config);
  config.rope_scaling.reset();
  for (const auto dense : {Linear::Format::fp8, Linear::Format::bf16, Linear::Format::f32}) {
    for (const auto expert :
         {Linear::Format::fp4, Linear::Format::fp8, Linear::Format::bf16, Linear::Format::f32}) {
      config.dense_format = dense;
      config.expert_format = expert;
      EXPECT_EQ(parsed(config_to_json(config)), config);
    }
  }
}

TEST(Config, ReadsTheNewerSpelling) {
  const Config published = parsed(data_file("t1.json"));
  EXPECT_EQ(published.num_hash_layers, 2);
  EXPECT_EQ(published.compress_ratios, (std::vector<std::int64_t>{0, 4, 128, 4, 128, 0, 4, 0}));
  const std::string newer = data_file("t1_newer_spelling.json");
  EXPECT_EQ(parsed(newer), published);
  // Without the leftovers of the older spelling that the file still has.
  Json json = Json::parse(newer);
  for (const char* key : {"qk_rope_head_dim", "rope_theta", "compress_rope_theta", "partial_rotary_factor"})
    json.erase(key);
  EXPECT_EQ(parsed(json.dump()), published);
  json["compress_rates"]["heavily_compressed_attention"] = 64;
  EXPECT_EQ(parsed(json.dump()).compress_ratios, (std::vector<std::int64_t>{0, 4, 64, 4, 64, 0, 4, 0}));
}

TEST(Config, ReadsReleasesWithADrafterAsModelsWithoutMtp) {
  Json json = flash();
  for (int i = 0; i < 2; ++i) json["compress_ratios"].push_back(0);  // 46: the drafter has three blocks
  json["dspark_block_size"] = 5;
  json["dspark_target_layer_ids"] = {40, 41, 42};
  const Config config = parsed(json.dump());
  EXPECT_TRUE(config.has_dspark);
  EXPECT_EQ(config.num_nextn_predict_layers, 0);
  EXPECT_EQ(config.compress_ratios.size(), 43U);
  EXPECT_EQ(config.compress_ratio(42), 4);
}

TEST(Config, ReadsTheStorageFormats) {
  const auto formats = [](const std::function<void(Json&)>& change) {
    Json json = flash();
    change(json);
    const Config config = parsed(json.dump());
    return std::pair(config.dense_format, config.expert_format);
  };
  using F = Linear::Format;
  EXPECT_EQ(formats([](Json&) {}), std::pair(F::fp8, F::fp4));
  // The -Base releases: FP8 experts too.
  EXPECT_EQ(formats([](Json& j) { j.erase("expert_dtype"); }), std::pair(F::fp8, F::fp8));
  EXPECT_EQ(formats([](Json& j) { j["expert_dtype"] = "fp8"; }), std::pair(F::fp8, F::fp8));
  EXPECT_EQ(formats([](Json& j) {
              j.erase("expert_dtype");
              j["quantization_config"]["expert_dtype"] = "fp4";
            }),
            std::pair(F::fp8, F::fp4));
  EXPECT_EQ(formats([](Json& j) { j.erase("quantization_config"); }), std::pair(F::bf16, F::fp4));
  const auto plain = [](const char* dtype) {
    return [dtype](Json& j) {
      j.erase("quantization_config");
      j.erase("expert_dtype");
      j["torch_dtype"] = dtype;
    };
  };
  EXPECT_EQ(formats(plain("bfloat16")), std::pair(F::bf16, F::bf16));
  EXPECT_EQ(formats(plain("float32")), std::pair(F::f32, F::f32));
}

TEST(Config, TakesMtpRatiosAsGivenOrLeftOut) {
  Json json = flash();
  json["compress_ratios"].erase(43);
  EXPECT_EQ(parsed(json.dump()), parsed(flash().dump()));
  json["num_nextn_predict_layers"] = 0;
  EXPECT_EQ(parsed(json.dump()).compress_ratios.size(), 43U);
}

TEST(Config, RefusesTextThatIsNoObject) {
  for (const std::string text : {"", "[]", "3", "{", "null", "{\"a\":}", "\xff\xfe\xff"})
    EXPECT_FALSE(parse_config(text).has_value()) << text;
  EXPECT_FALSE(parse_config(std::string(100'000, '[')).has_value());
  EXPECT_THAT(parse_config(std::string(2'000'000, ' ')).error().message(), HasSubstr("too many"));
}

TEST(Config, RefusesDeepNestingWhereANumberBelongs) {
  std::string deep(200'000, '[');
  deep.append(200'000, ']');
  for (const std::string key : {"hidden_size", "compress_ratios", "scoring_func", "rope_scaling",
                                "quantization_config", "hc_eps", "model_type"}) {
    Json json = flash();
    json[key] = "@";
    std::string text = json.dump();
    text.replace(text.find("\"@\""), 3, deep);
    const auto config = parse_config(text);
    ASSERT_FALSE(config.has_value()) << key;
    EXPECT_LT(config.error().message().size(), 300U);
  }
}

TEST(Config, TakesTheLastOfTwoEqualKeysAsPythonDoes) {
  std::string text = flash().dump();
  text.insert(1, R"("hidden_size": "nonsense",)");
  EXPECT_EQ(parsed(text).hidden_size, 4096);
}

TEST(Config, NamesTheMissingKey) {
  for (const std::string key :
       {"vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "num_attention_heads",
        "head_dim", "qk_rope_head_dim", "q_lora_rank", "o_groups", "o_lora_rank", "sliding_window",
        "index_n_heads", "index_head_dim", "index_topk", "n_routed_experts", "num_experts_per_tok",
        "moe_intermediate_size", "num_hash_layers", "routed_scaling_factor"}) {
    expect_refused([&](Json& j) { j.erase(key); }, "'" + key + "' is missing");
  }
  expect_refused([](Json& j) { j.erase("compress_ratios"); }, "neither 'compress_ratios' nor 'layer_types'");
}

TEST(Config, RefusesAbsurdNumbers) {
  for (const std::string key : {"vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "q_lora_rank",
                                "o_groups", "n_routed_experts", "moe_intermediate_size", "sliding_window",
                                "index_topk", "hc_mult", "hc_sinkhorn_iters", "max_position_embeddings"}) {
    for (const Json& value :
         {Json(0), Json(-1), Json(1.5), Json("4096"), Json(true), Json::array({4096}),
          Json(std::int64_t{1} << 62), Json(std::numeric_limits<std::uint64_t>::max()), Json(1e300)}) {
      expect_refused([&](Json& j) { j[key] = value; }, "'" + key + "' is ");
    }
  }
  for (const std::string key :
       {"rope_theta", "compress_rope_theta", "routed_scaling_factor", "swiglu_limit"}) {
    for (const Json& value : {Json(0), Json(-1.5), Json("x"), Json(1e308)})
      expect_refused([&](Json& j) { j[key] = value; }, "'" + key + "' is ");
  }
  for (const std::string key : {"rms_norm_eps", "hc_eps"}) {
    for (const Json& value : {Json(-1e-6), Json(1e9)})
      expect_refused([&](Json& j) { j[key] = value; }, "'" + key + "' is ");
  }
  expect_refused([](Json& j) { j["num_nextn_predict_layers"] = -1; }, "'num_nextn_predict_layers' is -1");
  expect_refused([](Json& j) { j["rope_scaling"]["factor"] = 0; }, "'factor' is 0");
  expect_refused([](Json& j) { j["n_routed_experts"] = 16384; }, "more than 524288 experts");
}

TEST(Config, RefusesNotANumber) {
  std::string text = flash().dump();
  const std::string eps = "\"hc_eps\":1e-06";
  ASSERT_NE(text.find(eps), std::string::npos);
  for (const std::string value : {"NaN", "Infinity", "1e999", "-1e999"}) {
    std::string bad = text;
    bad.replace(bad.find(eps), eps.size(), "\"hc_eps\":" + value);
    EXPECT_FALSE(parse_config(bad).has_value()) << value;
  }
}

TEST(Config, RefusesNumbersThatContradictOneAnother) {
  expect_refused([](Json& j) { j["num_hidden_layers"] = 42; },
                 "42 layers and 1 MTP blocks, but 44 compression");
  expect_refused([](Json& j) { j["compress_ratios"][5] = 3; }, "compression ratio 3");
  expect_refused([](Json& j) { j["compress_ratios"][5] = 1; }, "compression ratio 1");
  expect_refused([](Json& j) { j["compress_ratios"][5] = 256; }, "'compress_ratios[]' is 256");
  expect_refused([](Json& j) { j["compress_ratios"][43] = 4; }, "an MTP block has compression ratio 4");
  expect_refused([](Json& j) { j["qk_rope_head_dim"] = 512; }, "512 is not smaller than head_dim 512");
  expect_refused([](Json& j) { j["qk_rope_head_dim"] = 63; }, "63 is not a positive even number");
  expect_refused([](Json& j) { j["head_dim"] = 500; }, "head_dim 500 less qk_rope_head_dim 64");
  expect_refused([](Json& j) { j["o_groups"] = 7; }, "64 attention heads do not divide into 7 o_groups");
  expect_refused(
      [](Json& j) {
        j["num_experts_per_tok"] = 200;
        j["n_routed_experts"] = 100;
      },
      "200 experts per token, but only 100 routed experts");
  expect_refused([](Json& j) { j["num_hash_layers"] = 44; }, "'num_hash_layers' is 44");
  expect_refused([](Json& j) { j["index_head_dim"] = 96; }, "index_head_dim 96 is not a power of two");
  expect_refused([](Json& j) { j["index_head_dim"] = 32; }, "64 is larger than index_head_dim 32");
  expect_refused([](Json& j) { j["hidden_size"] = 4100; }, "hidden_size is 4100, not a multiple of 128");
  expect_refused([](Json& j) { j["moe_intermediate_size"] = 2050; }, "moe_intermediate_size is 2050");
  expect_refused([](Json& j) { j["eos_token_id"] = 129280; }, "eos_token_id 129280 lies outside");
  expect_refused([](Json& j) { j["rope_scaling"]["beta_slow"] = 64; }, "beta_fast 32 is smaller than");
  expect_refused([](Json& j) { j["layer_types"] = Json::array({"heavily_compressed_attention"}); },
                 "layer 0 has compression ratio 0 by 'compress_ratios', 128 by 'layer_types'");
  expect_refused([](Json& j) { j["mlp_layer_types"] = Json(std::vector<std::string>(43, "moe")); },
                 "'num_hash_layers' is 3, but 'mlp_layer_types' begins with 0");
}

TEST(Config, RefusesWhatHadalDoesNotRun) {
  expect_refused([](Json& j) { j["model_type"] = "deepseek_v3"; }, "model_type is \"deepseek_v3\"",
                 ErrorCode::unsupported);
  for (const auto& [key, value] : std::vector<std::pair<std::string, Json>>{{"scoring_func", "softmax"},
                                                                            {"topk_method", "greedy"},
                                                                            {"hidden_act", "gelu"},
                                                                            {"num_key_value_heads", 8},
                                                                            {"n_shared_experts", 2},
                                                                            {"tie_word_embeddings", true},
                                                                            {"attention_bias", true},
                                                                            {"norm_topk_prob", false}}) {
    expect_refused([&, k = key, v = value](Json& j) { j[k] = v; }, "'" + key + "' is ");
  }
  expect_refused([](Json& j) { j["expert_dtype"] = "int3"; }, "'expert_dtype' is \"int3\"");
  expect_refused([](Json& j) { j["quantization_config"]["quant_method"] = "awq"; }, "quant_method \"awq\"");
  expect_refused(
      [](Json& j) {
        j["quantization_config"]["weight_block_size"] = {64, 64};
      },
      "weight_block_size an array of 2");
  expect_refused([](Json& j) { j["quantization_config"] = 3; }, "'quantization_config' is not an object");
  expect_refused([](Json& j) { j["rope_scaling"]["type"] = "linear"; }, "rope scaling of type \"linear\"");
}

TEST(Config, CutsLayersAndExperts) {
  const Config flash_config = *preset_config("flash");
  const auto three = cut_config(flash_config, 3, 16);
  ASSERT_TRUE(three.has_value());
  EXPECT_EQ(three->compress_ratios, (std::vector<std::int64_t>{0, 0, 4, 0}));  // the MTP block stays the last
  EXPECT_EQ(three->num_hidden_layers, 3);
  EXPECT_EQ(three->num_nextn_predict_layers, 1);
  EXPECT_EQ(three->num_hash_layers, 3);
  EXPECT_EQ(three->n_routed_experts, 16);
  EXPECT_EQ(parsed(config_to_json(*three)), *three);
  EXPECT_EQ(cut_config(flash_config, 1, 0)->num_hash_layers, 1);
  EXPECT_EQ(*cut_config(flash_config, 0, 0), flash_config);
  EXPECT_EQ(*cut_config(flash_config, 43, 256), flash_config);
  EXPECT_THAT(cut_config(flash_config, 44, 0).error().message(), HasSubstr("44 layers: the model has 43"));
  EXPECT_FALSE(cut_config(flash_config, -1, 0).has_value());
  EXPECT_THAT(cut_config(flash_config, 0, 5).error().message(), HasSubstr("sends a token to 6 of them"));
  EXPECT_FALSE(cut_config(flash_config, 0, 257).has_value());
}

TEST(Config, LoadsFromADirectoryAndNamesTheFile) {
  const auto missing = load_config("/no/such/model");
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), ErrorCode::not_found);
  EXPECT_THAT(missing.error().message(), HasSubstr("/no/such/model/config.json"));
}

}  // namespace
}  // namespace hadal
