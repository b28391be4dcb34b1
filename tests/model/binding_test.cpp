// Binding a checkpoint to a config: what every kind of release has loads, and a tensor that is missing, too
// many, of the wrong shape or of the wrong dtype is named.
#include <cstring>
#include <map>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/safetensors_writer.h"
#include "model/init.h"
#include "model/transformer.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Config tiny() {
  Config c = *preset_config("flash");
  c.vocab_size = 64;
  c.hidden_size = 128;
  c.num_attention_heads = 2;
  c.head_dim = 128;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 64;
  c.index_n_heads = 2;
  c.index_head_dim = 64;
  c.n_routed_experts = 4;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 128;
  return *cut_config(std::move(c), 4, 0);
}

// A checkpoint whose tensors can be changed one by one.
struct Tensors {
  struct Tensor {
    DType dtype = DType::f32;
    Shape shape;
    std::string bytes;
  };
  std::map<std::string, Tensor> all;

  static Tensors random(const Config& config, StorageFormat format = StorageFormat::published) {
    ThreadPool pool(1);
    auto bytes = init_checkpoint_bytes(config, 1, format, pool);
    const auto checkpoint = Checkpoint::from_bytes(std::move(*bytes), "random");
    Tensors tensors;
    for (const std::string_view name : checkpoint->names()) {
      const TensorRef& t = *checkpoint->find(name);
      tensors.all[std::string(name)] = {
          t.dtype, t.shape,
          std::string(reinterpret_cast<const char*>(t.data), static_cast<std::size_t>(t.bytes()))};
    }
    return tensors;
  }

  Tensor& at(const std::string& name) { return all.at(name); }
  // A tensor of zeros.
  void put(const std::string& name, DType dtype, Shape shape) {
    const auto bytes = static_cast<std::size_t>(TensorRef{dtype, shape, nullptr}.bytes());
    all[name] = {dtype, std::move(shape), std::string(bytes, '\0')};
  }
  // The same values as float32, with the scales gone.
  void widen(const std::string& name) {
    const Tensor from = at(name);
    const std::string scale_key = from.dtype == DType::bf16 ? "" : scale_name(name);
    const std::int64_t columns = from.shape[1] * (from.dtype == DType::i8 ? 2 : 1);
    const std::int64_t n = from.shape[0] * columns;
    std::vector<float> values;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto byte = [&](const std::string& bytes, std::int64_t k) {
        return static_cast<std::uint8_t>(bytes[static_cast<std::size_t>(k)]);
      };
      const std::int64_t row = i / columns, column = i % columns;
      if (from.dtype == DType::bf16) {
        std::uint16_t half = 0;
        std::memcpy(&half, from.bytes.data() + 2 * i, 2);
        values.push_back(bf16_to_f32(half));
      } else {
        const Tensor& scale = at(scale_key);
        const bool fp4 = from.dtype == DType::i8;
        const std::int64_t block =
            (fp4 ? row : row / 128) * scale.shape[1] + (fp4 ? column / 32 : column / 128);
        const float x = fp4 ? e2m1_to_f32(static_cast<std::uint8_t>(byte(from.bytes, i / 2) >> (4 * (i % 2))))
                            : e4m3_to_f32(byte(from.bytes, i));
        values.push_back(x * e8m0_to_f32(byte(scale.bytes, block)));
      }
    }
    all.erase(scale_key);
    all[name] = {DType::f32,
                 {from.shape[0], columns},
                 std::string(reinterpret_cast<const char*>(values.data()), 4 * static_cast<std::size_t>(n))};
  }

  Checkpoint checkpoint() const {
    std::vector<AnnouncedTensor> announced;
    for (const auto& [name, tensor] : all) announced.push_back({name, tensor.dtype, tensor.shape});
    std::string image = safetensors_header(announced);
    for (const auto& [name, tensor] : all) image += tensor.bytes;
    Buffer<std::byte> bytes(image.size());
    std::memcpy(bytes.data(), image.data(), image.size());
    return std::move(*Checkpoint::from_bytes(std::move(bytes), "x.safetensors"));
  }
};

std::vector<float> logits_of(const Model& model, Numerics numerics = Numerics::exact) {
  ThreadPool pool(1);
  const auto backend = make_backend("ref", "", pool);
  Transformer transformer(model, **backend, numerics);
  SequenceState state(model.state_layout());
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < 9; ++i) tokens.push_back(i * 7 % 64);
  const BatchItem item{&state, tokens, BatchItem::Logits::all};
  const auto logits = transformer.forward({&item, 1});
  EXPECT_TRUE(logits.has_value());
  return {logits->begin(), logits->end()};
}

void expect_loads(const Config& config, const Tensors& tensors) {
  const auto model = Model::bind(config, tensors.checkpoint());
  EXPECT_TRUE(model.has_value()) << model.error().message();
}

void expect_refused(const Tensors& tensors, std::string_view message, const Config& config = tiny()) {
  const auto model = Model::bind(config, tensors.checkpoint());
  ASSERT_FALSE(model.has_value()) << "accepted, expected: " << message;
  EXPECT_EQ(model.error().code(), ErrorCode::corrupt);
  EXPECT_EQ(model.error().message(), message);
}

// Releases -------------------------------------------------------------------------------------------------

TEST(Binding, BaseReleasesLoad) {
  Config base = tiny();
  base.expert_format = Linear::Format::fp8;
  Tensors tensors = Tensors::random(base);
  EXPECT_EQ(tensors.at("layers.0.ffn.experts.0.w1.weight").dtype, DType::f8_e4m3);
  expect_loads(base, tensors);
  // The tensors say what they are, whatever the config says.
  expect_loads(tiny(), tensors);
  tensors.put("mtp.0.emb.tok_emb.weight", DType::bf16, {64, 128});
  tensors.put("mtp.0.head.weight", DType::bf16, {64, 128});
  expect_loads(base, tensors);
  tensors.put("mtp.0.embed.weight", DType::bf16, {64, 128});
  expect_loads(base, tensors);
  tensors.put("mtp.1.head.weight", DType::bf16, {64, 128});
  expect_refused(tensors, "'mtp.1.head.weight' is no tensor of this model", base);
}

TEST(Binding, MixedFormatsGiveTheSameNumbers) {
  Tensors tensors = Tensors::random(tiny());
  const auto published = Model::bind(tiny(), tensors.checkpoint());
  ASSERT_TRUE(published.has_value()) << published.error().message();
  EXPECT_TRUE(published->quantised());
  for (const char* name :
       {"layers.0.attn.wq_a.weight", "layers.0.ffn.experts.0.w1.weight", "layers.1.ffn.experts.3.w2.weight",
        "layers.2.attn.indexer.wq_b.weight", "layers.3.ffn.shared_experts.w3.weight", "mtp.0.e_proj.weight",
        "head.weight", "embed.weight", "layers.2.attn.compressor.wkv.weight", "layers.3.ffn.gate.weight"})
    tensors.widen(name);
  const auto mixed = Model::bind(tiny(), tensors.checkpoint());
  ASSERT_TRUE(mixed.has_value()) << mixed.error().message();
  // Sums of products may round differently on other paths through the kernels, nothing more.
  const std::vector<float> a = logits_of(*published), b = logits_of(*mixed);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-4F) << i;
}

TEST(Binding, AllBf16AndAllF32Load) {
  for (const StorageFormat format : {StorageFormat::bf16, StorageFormat::f32}) {
    const Tensors tensors = Tensors::random(tiny(), format);
    const auto model = Model::bind(config_for_format(tiny(), format), tensors.checkpoint());
    ASSERT_TRUE(model.has_value()) << model.error().message();
    EXPECT_FALSE(model->quantised());
    // `official` has nothing to quantise here but what the caches store.
    EXPECT_EQ(logits_of(*model, Numerics::qsim), logits_of(*model, Numerics::official));
  }
}

TEST(Binding, VectorsMayBeF32Bf16OrF16AndTablesI32) {
  Tensors tensors = Tensors::random(tiny());
  tensors.put("layers.0.attn_norm.weight", DType::f32, {128});
  tensors.put("layers.1.attn_norm.weight", DType::f16, {128});
  tensors.put("layers.0.attn.attn_sink", DType::bf16, {2});
  tensors.put("layers.0.ffn.gate.tid2eid", DType::i32, {64, 2});
  tensors.at("layers.1.attn_norm.weight").bytes[1] = 0x3c;  // 1.0
  const auto model = Model::bind(tiny(), tensors.checkpoint());
  ASSERT_TRUE(model.has_value()) << model.error().message();
  EXPECT_EQ(model->weights().layers[1].attn_norm.values[0], 1.0F);
  EXPECT_EQ(model->weights().layers[1].attn_norm.values[1], 0.0F);
}

TEST(Binding, ReleasesWithADrafterLoadWithoutIt) {
  // 0731: dspark_* keys in config.json, and under mtp.* another architecture.
  Tensors tensors = Tensors::random(*parse_config(config_to_json(tiny())));
  std::erase_if(tensors.all, [](const auto& item) { return item.first.starts_with("mtp."); });
  tensors.put("mtp.0.main_proj.weight", DType::bf16, {128, 384});
  tensors.put("mtp.1.ffn.experts.0.w1.weight", DType::i8, {128, 64});
  tensors.put("mtp.2.markov_head.markov_w1", DType::bf16, {64, 8});
  std::string json = config_to_json(tiny());
  json.insert(1, R"("dspark_block_size": 5, "dspark_markov_rank": 8,)");
  const auto config = parse_config(json);
  ASSERT_TRUE(config.has_value()) << config.error().message();
  EXPECT_TRUE(config->has_dspark);
  std::vector<std::string> notices;
  const auto model =
      Model::bind(*config, tensors.checkpoint(), [&](std::string_view line) { notices.emplace_back(line); });
  ASSERT_TRUE(model.has_value()) << model.error().message();
  EXPECT_EQ(model->config().num_nextn_predict_layers, 0);
  EXPECT_TRUE(model->weights().mtp.empty());
  EXPECT_THAT(notices,
              testing::ElementsAre("the DSpark drafter of this release (3 tensors under mtp.*) is not used"));
  EXPECT_EQ(logits_of(*model).size(), 9U * 64);

  // Other tensors are not excused.
  tensors.put("layers.0.drafter", DType::bf16, {1});
  expect_refused(tensors, "'layers.0.drafter' is no tensor of this model", *config);
}

// Refusals -------------------------------------------------------------------------------------------------

TEST(Binding, NamesAMissingTensor) {
  const Tensors whole = Tensors::random(tiny());
  for (const char* name :
       {"embed.weight", "norm.weight", "layers.0.ffn.gate.tid2eid", "layers.3.ffn.gate.bias",
        "layers.1.hc_ffn_scale", "layers.2.attn.indexer.compressor.ape", "mtp.0.hnorm.weight",
        "layers.3.ffn.experts.2.w2.weight"}) {
    Tensors tensors = whole;
    tensors.all.erase(name);
    expect_refused(tensors, fmt::format("'{}' is missing", name));
  }
  Tensors tensors = whole;
  tensors.all.erase("layers.0.attn.wq_a.scale");
  expect_refused(
      tensors,
      "'layers.0.attn.wq_a.scale' is missing: 'layers.0.attn.wq_a.weight' is F8_E4M3 and needs its scales");
  tensors = whole;
  tensors.all.erase("layers.1.ffn.experts.3.w3.scale");
  tensors.all.erase("norm.weight");
  expect_refused(tensors, "'norm.weight' is missing (and 1 more such problem)");
  expect_refused(Tensors{{{"x", whole.all.at("norm.weight")}}},
                 "'embed.weight' is missing (and " +
                     std::to_string(whole.all.size() -
                                    [&] {
                                      std::size_t scales = 0;
                                      for (const auto& item : whole.all)
                                        scales += item.first.ends_with(".scale") ? 1 : 0;
                                      return scales;
                                    }()) +
                     " more such problems)");
}

TEST(Binding, NamesATensorTooMany) {
  const Tensors whole = Tensors::random(tiny());
  for (const char* name : {"x", "layers.4.attn_norm.weight", "layers.0.ffn.experts.4.w1.weight",
                           "layers.0.ffn.gate.bias", "layers.0.attn.compressor.ape", "mtp.1.norm.weight",
                           "model.embed_tokens.weight", "mtp.0.markov_head.markov_w1"}) {
    Tensors tensors = whole;
    tensors.put(name, DType::f32, {1});
    expect_refused(tensors, fmt::format("'{}' is no tensor of this model", name));
  }
  // Scales of a weight that has no use for them.
  Tensors tensors = Tensors::random(tiny(), StorageFormat::bf16);
  tensors.put("layers.0.attn.wq_a.scale", DType::f8_e8m0, {1, 1});
  expect_refused(tensors, "'layers.0.attn.wq_a.scale' is no tensor of this model",
                 config_for_format(tiny(), StorageFormat::bf16));
}

TEST(Binding, NamesAWrongShape) {
  const Tensors whole = Tensors::random(tiny());
  struct Case {
    std::string name;
    DType dtype;
    Shape shape;
    std::string message;
  };
  const std::vector<Case> cases = {
      {"embed.weight", DType::bf16, {63, 128}, "has shape [63, 128], the config asks for [64, 128]"},
      {"head.weight", DType::bf16, {128, 64}, "has shape [128, 64], the config asks for [64, 128]"},
      {"norm.weight", DType::bf16, {127}, "has shape [127], the config asks for [128]"},
      {"norm.weight", DType::bf16, {128, 1}, "has shape [128, 1], the config asks for [128]"},
      {"norm.weight", DType::bf16, {}, "has shape [], the config asks for [128]"},
      {"hc_head_scale", DType::f32, {0}, "has shape [0], the config asks for [1]"},
      {"layers.0.attn.wq_a.weight",
       DType::f8_e4m3,
       {128, 64},
       "has shape [128, 64], the config asks for [128, 128]"},
      {"layers.0.attn.wq_b.scale", DType::f8_e8m0, {1, 1}, "has shape [1, 1], the config asks for [2, 1]"},
      {"layers.0.ffn.experts.0.w1.weight",
       DType::i8,
       {128, 128},
       "has shape [128, 128], the config asks for [128, 64]"},
      {"layers.0.ffn.experts.0.w1.scale",
       DType::f8_e8m0,
       {128, 1},
       "has shape [128, 1], the config asks for [128, 4]"},
      {"layers.0.ffn.gate.tid2eid", DType::i64, {64, 3}, "has shape [64, 3], the config asks for [64, 2]"},
      {"layers.0.attn.attn_sink", DType::f32, {3}, "has shape [3], the config asks for [2]"},
  };
  for (const Case& item : cases) {
    Tensors tensors = whole;
    tensors.put(item.name, item.dtype, item.shape);
    expect_refused(tensors, fmt::format("'{}' {}", item.name, item.message));
  }
}

TEST(Binding, NamesAWrongDType) {
  const Tensors whole = Tensors::random(tiny());
  const std::string linear = "expected F32, F16, BF16, F8_E4M3 or packed FP4 (I8)";
  struct Case {
    std::string name;
    DType dtype;
    std::string message;
  };
  const std::vector<Case> cases = {
      {"embed.weight", DType::i64, "is I64, " + linear},
      {"layers.0.attn.wkv.weight", DType::f8_e8m0, "is F8_E8M0, " + linear},
      {"norm.weight", DType::f8_e4m3, "is F8_E4M3, expected F32, BF16 or F16"},
      {"layers.0.ffn.gate.tid2eid", DType::f32, "is F32, expected I64 or I32"},
      {"layers.0.attn.wq_a.scale", DType::u8, "is U8, expected F8_E8M0"},
      {"layers.0.attn.wq_a.scale", DType::f32, "is F32, expected F8_E8M0"},
      // These have no ".weight", so there is no name for their scales.
      {"layers.0.hc_attn_fn", DType::f8_e4m3, "is F8_E4M3, expected F32, F16 or BF16"},
  };
  for (const Case& item : cases) {
    Tensors tensors = whole;
    tensors.put(item.name, item.dtype, whole.all.at(item.name).shape);
    expect_refused(tensors, fmt::format("'{}' {}", item.name, item.message));
  }
  Tensors tensors = whole;
  tensors.put("hc_head_fn", DType::i8, {4, 256});
  expect_refused(tensors, "'hc_head_fn' is I8, expected F32, F16 or BF16");
}

TEST(Binding, NamesAnExpertThatIsNotThere) {
  for (const std::int64_t id : {std::int64_t{4}, std::int64_t{-1}, std::int64_t{1} << 40}) {
    Tensors tensors = Tensors::random(tiny());
    std::memcpy(tensors.at("layers.1.ffn.gate.tid2eid").bytes.data() + 8 * 21, &id, 8);
    expect_refused(tensors,
                   fmt::format("'layers.1.ffn.gate.tid2eid' sends token 10 to expert {}, but there are "
                               "experts 0 to 3",
                               id));
  }
}

// A config that does not speak of quantisation promises no multiples of 128, which FP8 inputs need.
TEST(Binding, RefusesQuantisedWeightsWhoseInputsHaveNoWholeBlocks) {
  Config config = config_for_format(tiny(), StorageFormat::bf16);
  config.hidden_size = 96;
  config = *parse_config(config_to_json(config));
  Tensors tensors = Tensors::random(config);
  expect_loads(config, tensors);
  tensors.put("layers.0.attn.wq_a.weight", DType::f8_e4m3, {128, 96});
  tensors.put("layers.0.attn.wq_a.scale", DType::f8_e8m0, {1, 1});
  expect_refused(
      tensors,
      "there are FP8 or FP4 weights, but hidden_size is 96, not a multiple of 128, the block in which "
      "their inputs are quantised",
      config);
}

// Values --------------------------------------------------------------------------------------------------

void expect_corrupt(const Tensors& tensors, std::string_view message, WeightCheck::Depth depth,
                    const Config& config = tiny()) {
  ThreadPool pool(3);
  for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
    const auto model = Model::bind(config, tensors.checkpoint(), {}, {}, {depth, threads});
    ASSERT_FALSE(model.has_value()) << "accepted, expected: " << message;
    EXPECT_EQ(model.error().code(), ErrorCode::corrupt);
    EXPECT_THAT(model.error().message(), StartsWith(message));
    EXPECT_THAT(model.error().message(), HasSubstr("get it again from its source"));
  }
}

TEST(Binding, NamesAWeightThatIsNotFinite) {
  using Depth = WeightCheck::Depth;
  struct Case {
    const char* name;
    std::size_t byte;
    std::string put;
    const char* message;
  };
  const auto bytes = [](std::initializer_list<int> values) {
    std::string out;
    for (const int value : values) out += static_cast<char>(value);
    return out;
  };
  const std::vector<Case> cases = {
      // Scales: NaN, and what takes the format's largest value beyond float32.
      {"layers.1.attn.wkv.scale", 0, bytes({255}),
       "'layers.1.attn.wkv.scale' is not finite at [0, 0] (F8_E8M0 0xff); "},
      {"layers.1.attn.wkv.scale", 0, bytes({247}),
       "'layers.1.attn.wkv.scale' is a scale that makes its weights infinite at [0, 0] (F8_E8M0 0xf7); "},
      {"layers.3.ffn.experts.2.w3.scale", 4 * 100 + 3, bytes({255}),
       "'layers.3.ffn.experts.2.w3.scale' is not finite at [100, 3] (F8_E8M0 0xff); "},
      {"layers.3.ffn.experts.2.w3.scale", 4 * 100 + 3, bytes({253}),
       "'layers.3.ffn.experts.2.w3.scale' is a scale that makes its weights infinite at [100, 3] (F8_E8M0 "
       "0xfd); "},
      // Codes of E4M3, both NaN.
      {"layers.0.attn.wq_a.weight", 128 * 5 + 17, bytes({0x7f}),
       "'layers.0.attn.wq_a.weight' is not finite at [5, 17] (F8_E4M3 0x7f); "},
      {"layers.2.ffn.shared_experts.w2.weight", 128 * 128 - 1, bytes({0xff}),
       "'layers.2.ffn.shared_experts.w2.weight' is not finite at [127, 127] (F8_E4M3 0xff); "},
      // BF16 and float32: infinities of both signs, NaN; in matrices and in vectors.
      {"embed.weight", 2 * (128 * 63 + 127), bytes({0x80, 0x7f}),
       "'embed.weight' is not finite at [63, 127] (BF16 0x7f80); "},
      {"head.weight", 0, bytes({0xc1, 0xff}), "'head.weight' is not finite at [0, 0] (BF16 0xffc1); "},
      {"layers.1.attn_norm.weight", 2 * 9, bytes({0x80, 0xff}),
       "'layers.1.attn_norm.weight' is not finite at [9] (BF16 0xff80); "},
      {"layers.2.hc_attn_fn", 4 * (512 + 3), bytes({0, 0, 0x80, 0x7f}),
       "'layers.2.hc_attn_fn' is not finite at [1, 3] (F32 0x7f800000); "},
      {"layers.3.ffn.gate.bias", 4 * 3, bytes({1, 0, 0x80, 0xff}),
       "'layers.3.ffn.gate.bias' is not finite at [3] (F32 0xff800001); "},
      {"mtp.0.hnorm.weight", 2 * 127, bytes({0x80, 0x7f}),
       "'mtp.0.hnorm.weight' is not finite at [127] (BF16 0x7f80); "},
  };
  const Tensors whole = Tensors::random(tiny());
  for (const Case& c : cases) {
    Tensors tensors = whole;
    tensors.at(c.name).bytes.replace(c.byte, c.put.size(), c.put);
    expect_corrupt(tensors, c.message, Depth::load);
    EXPECT_TRUE(Model::bind(tiny(), tensors.checkpoint(), {}, {}, {Depth::none, nullptr}).has_value());
  }
  // The largest that there may be, and every FP4 code.
  Tensors most = whole;
  most.at("layers.1.attn.wkv.scale").bytes[0] = static_cast<char>(246);
  most.at("layers.3.ffn.experts.2.w3.scale").bytes[7] = static_cast<char>(252);
  most.at("layers.3.ffn.experts.2.w3.weight").bytes.assign(128 * 64, '\x7f');
  expect_loads(tiny(), most);
}

TEST(Binding, FirstOfSeveralIsNamedWhoeverFindsIt) {
  Tensors tensors = Tensors::random(tiny());
  for (const char* name : {"layers.3.attn.wkv.scale", "layers.1.attn.wkv.scale", "mtp.0.e_proj.scale"})
    tensors.at(name).bytes[0] = '\xff';
  for (int i = 0; i < 20; ++i)
    expect_corrupt(tensors, "'layers.1.attn.wkv.scale' ", WeightCheck::Depth::load);
}

// FP8 experts are the bulk of -Base releases: their codes are read when something else reads them, or on
// demand.
TEST(Binding, CodesOfFp8ExpertsAreForAWholeCheck) {
  Config base = tiny();
  base.expert_format = Linear::Format::fp8;
  Tensors tensors = Tensors::random(base);
  tensors.at("layers.2.ffn.experts.1.w2.weight").bytes[128 * 3 + 4] = '\x7f';
  expect_loads(base, tensors);
  expect_corrupt(tensors, "'layers.2.ffn.experts.1.w2.weight' is not finite at [3, 4] (F8_E4M3 0x7f); ",
                 WeightCheck::Depth::all, base);
}

TEST(Binding, LoadNamesTheDirectory) {
  const auto model = Model::load("/no/such/model");
  ASSERT_FALSE(model.has_value());
  EXPECT_THAT(model.error().message(), StartsWith("/no/such/model/config.json: "));
  EXPECT_THAT(model.error().message(), HasSubstr("No such file"));
}

}  // namespace
}  // namespace hadal
