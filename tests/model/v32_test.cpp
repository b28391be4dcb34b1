// DeepSeek-V3.2, the baseline: logits against transformers' DeepseekV32, and what hadal promises of any
// model.
#include <fstream>
#include <random>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "model/init.h"
#include "model/transformer.h"

namespace hadal {
namespace {

using Json = nlohmann::json;

std::string data(const char* name) {
  return read_file(std::filesystem::path(HADAL_TEST_DATA) / "v32" / name).value_or("");
}

// The model of tools/record_v32.py: hadal init --seed 3, in float32 or as published.
Model small_model(StorageFormat format, ThreadPool& pool) {
  Json json = Json::parse(data("config.json"));
  if (format == StorageFormat::published) {
    json["quantization_config"] = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"scale_fmt", "ue8m0"}, {"weight_block_size", {128, 128}}};
  }
  const Config config = config_for_format(*parse_config(json.dump()), format);
  Buffer<std::byte> image = *init_checkpoint_bytes(config, 3, format, pool);
  auto model = Model::bind(config, *Checkpoint::from_bytes(std::move(image), "small"));
  EXPECT_TRUE(model.has_value()) << model.error().message();
  return std::move(*model);
}

// Logits of all tokens, in forwards of these sizes; the last one repeats.
std::vector<float> run(const Model& model, Backend& backend, Numerics numerics, StateFormat format,
                       std::span<const std::int32_t> tokens, const std::vector<std::size_t>& chunks) {
  Transformer transformer(model, backend, numerics);
  SequenceState state(model.state_layout(format));
  std::vector<float> out;
  for (std::size_t at = 0, i = 0; at < tokens.size(); ++i) {
    const std::size_t n = std::min(chunks[std::min(i, chunks.size() - 1)], tokens.size() - at);
    const BatchItem item{&state, tokens.subspan(at, n), BatchItem::Logits::all};
    const auto logits = transformer.forward({&item, 1});
    EXPECT_TRUE(logits.has_value());
    out.insert(out.end(), logits->begin(), logits->end());
    at += n;
  }
  return out;
}

TEST(V32, LogitsAreThoseOfTransformers) {
  const Json golden = Json::parse(data("golden.json"));
  const auto tokens = golden["tokens"].get<std::vector<std::int32_t>>();
  const auto positions = golden["positions"].get<std::vector<std::size_t>>();
  ThreadPool pool(2);
  const Model model = small_model(StorageFormat::f32, pool);
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  ASSERT_GT(tokens.size(), static_cast<std::size_t>(2 * model.config().index_topk));  // the indexer chooses
  for (const char* name : {"ref", "cpu"}) {
    const auto backend = *make_backend(name, "", pool);
    const std::vector<float> logits = run(model, *backend, Numerics::exact, StateFormat::f32, tokens, {96});
    for (std::size_t row = 0; row < positions.size(); ++row) {
      for (std::size_t v = 0; v < vocab; ++v)
        ASSERT_NEAR(logits[positions[row] * vocab + v], golden["logits"][row][v].get<float>(), 2e-5)
            << name << " at " << positions[row] << ", " << v;
    }
  }
}

TEST(V32, ChunksAndThreadsDoNotShow) {
  std::vector<std::int32_t> tokens(70);
  std::mt19937 random(5);
  for (auto& token : tokens) token = static_cast<std::int32_t>(random() % 192);
  ThreadPool one(1), two(2);
  const Model model = small_model(StorageFormat::published, two);
  const auto alone = *make_backend("cpu", "", one), together = *make_backend("cpu", "", two);
  for (const Numerics numerics : {Numerics::qsim, Numerics::official, Numerics::int8}) {
    const auto whole = run(model, *together, numerics, StateFormat::compact, tokens, {70});
    EXPECT_EQ(whole, run(model, *together, numerics, StateFormat::compact, tokens, {33, 1, 5}));
    EXPECT_EQ(whole, run(model, *alone, numerics, StateFormat::compact, tokens, {1}));
  }
}

TEST(V32, ConfigsGoThereAndBack) {
  for (const Config& config : {*preset_config("v3.2"), *parse_config(data("config.json"))}) {
    const auto again = parse_config(config_to_json(config));
    ASSERT_TRUE(again.has_value()) << again.error().message();
    EXPECT_EQ(*again, config);
  }
  Json bad = Json::parse(data("config.json"));
  bad["kv_lora_rank"] = 100;
  EXPECT_NE(parse_config(bad.dump()).error().message().find("kv_lora_rank 100"), std::string::npos);
  bad = Json::parse(data("config.json"));
  bad.erase("v_head_dim");
  EXPECT_NE(parse_config(bad.dump()).error().message().find("'v_head_dim' is missing"), std::string::npos);
  bad = Json::parse(data("config.json"));
  bad["n_group"] = 3;
  EXPECT_NE(parse_config(bad.dump()).error().message().find("do not divide into 3 groups"),
            std::string::npos);
}

TEST(V32, ScalesThatAreNoPowersOfTwoAreRefused) {
  ThreadPool pool(1);
  Json json = Json::parse(data("config.json"));
  json["quantization_config"] = {{"quant_method", "fp8"}};
  const Config config = *parse_config(json.dump());
  Buffer<std::byte> image = *init_checkpoint_bytes(config, 3, StorageFormat::published, pool);
  Checkpoint checkpoint = *Checkpoint::from_bytes(std::move(image), "small");
  const TensorRef* scale = checkpoint.find("model.layers.0.self_attn.o_proj.weight_scale_inv");
  ASSERT_NE(scale, nullptr);
  const float three = 3;
  std::memcpy(const_cast<std::byte*>(scale->data), &three, sizeof(three));
  const auto model = Model::bind(config, std::move(checkpoint));
  ASSERT_FALSE(model.has_value());
  EXPECT_NE(model.error().message().find("no power of two"), std::string::npos);
}

}  // namespace
}  // namespace hadal
