// Random checkpoints: the same bytes by every path, values of the promised laws, activations that stay of
// order one through 43 layers, and a directory that is either complete or untouched.
#include "model/init.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "base/rng.h"
#include "formats/safetensors.h"
#include "formats/safetensors_image.h"
#include "model/transformer.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using test::TemporaryDirectory;
using testing::HasSubstr;

// Flash in small: every kind of layer, FP4 experts, FP8 elsewhere.
Config tiny(std::int64_t layers) {
  Config c = *preset_config("flash");
  c.vocab_size = 512;
  c.hidden_size = 128;
  c.num_attention_heads = 4;
  c.head_dim = 128;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 64;
  c.sliding_window = 16;
  c.index_n_heads = 4;
  c.index_head_dim = 64;
  c.index_topk = 16;
  c.n_routed_experts = 16;
  c.num_experts_per_tok = 4;
  c.moe_intermediate_size = 128;
  c.max_position_embeddings = 4096;
  return *cut_config(std::move(c), layers, 0);
}

// The image of `config` drawn with `seed`.
Buffer<std::byte> drawn(const Config& config, std::uint64_t seed,
                        StorageFormat format = StorageFormat::published, int threads = 2) {
  ThreadPool pool(threads);
  auto bytes = init_checkpoint_bytes(config, seed, format, pool);
  EXPECT_TRUE(bytes.has_value()) << bytes.error().message();
  return std::move(*bytes);
}

Checkpoint opened(Buffer<std::byte> bytes) {
  auto checkpoint = Checkpoint::from_bytes(std::move(bytes), "random");
  EXPECT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  return std::move(*checkpoint);
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::string text_of(const TensorRef& tensor) {
  return text_of(std::span(tensor.data, static_cast<std::size_t>(tensor.bytes())));
}

std::set<std::string> names_in(const fs::path& directory) {
  std::set<std::string> names;
  for (const auto& file : fs::directory_iterator(directory)) names.insert(file.path().filename().string());
  return names;
}

Result<InitSummary> init(const Config& config, const fs::path& directory, const InitOptions& options = {}) {
  ThreadPool pool(2);
  return init_checkpoint(config, directory, options, pool);
}

// Every tensor has the dtype and shape of the one declaration, and there is no other.
void expect_inventory(const Checkpoint& checkpoint, const Config& config, StorageFormat format) {
  Weights slots;
  std::int64_t expected = 0;
  for_each_parameter(config, slots, [&](auto& /*slot*/, const ParameterInfo& info) {
    for (const StoredTensor& stored : stored_tensors(config, info, format)) {
      ++expected;
      const TensorRef* tensor = checkpoint.find(stored.name);
      ASSERT_NE(tensor, nullptr) << stored.name;
      EXPECT_EQ(tensor->dtype, stored.dtype) << stored.name;
      EXPECT_EQ(tensor->shape, stored.shape) << stored.name;
    }
  });
  EXPECT_EQ(checkpoint.tensor_count(), expected);
}

// Paths ----------------------------------------------------------------------------------------------------

TEST(Init, SameBytesForAnyNumberOfThreadsAndOnDisk) {
  const Config config = tiny(5);
  const Buffer<std::byte> one = drawn(config, 7, StorageFormat::published, 1);
  const Buffer<std::byte> three = drawn(config, 7, StorageFormat::published, 3);
  EXPECT_TRUE(text_of(one.span()) == text_of(three.span()));
  EXPECT_FALSE(text_of(one.span()) == text_of(drawn(config, 8).span()));

  const TemporaryDirectory dir;
  InitOptions options;
  options.seed = 7;
  const auto summary = init(config, dir / "m", options);
  ASSERT_TRUE(summary.has_value()) << summary.error().message();
  EXPECT_EQ(summary->shards, std::vector<std::string>{"model.safetensors"});
  EXPECT_EQ(names_in(dir / "m"), (std::set<std::string>{"config.json", "model.safetensors"}));
  const auto file = MappedFile::open(dir / "m" / "model.safetensors");
  ASSERT_TRUE(file.has_value());
  EXPECT_TRUE(text_of(file->bytes()) == text_of(one.span()));
  EXPECT_EQ(*load_config(dir / "m"), config);

  const auto model = Model::load(dir / "m");
  ASSERT_TRUE(model.has_value()) << model.error().message();
  EXPECT_TRUE(model->quantised());
  EXPECT_EQ(model->checkpoint().tensor_count(), summary->tensors);
  EXPECT_EQ(model->checkpoint().total_bytes(), summary->bytes);
  expect_inventory(model->checkpoint(), config, StorageFormat::published);
}

TEST(Init, ShardsHoldTheSameTensors) {
  const Config config = tiny(5);
  const TemporaryDirectory dir;
  InitOptions options;
  options.seed = 7;
  options.shard_bytes = 300'000;
  const auto summary = init(config, dir / "m", options);
  ASSERT_TRUE(summary.has_value()) << summary.error().message();
  const std::size_t n = summary->shards.size();
  ASSERT_GT(n, 9U);
  EXPECT_EQ(summary->shards[0], fmt::format("model-00001-of-{:05}.safetensors", n));
  EXPECT_EQ(summary->shards[n - 1], fmt::format("model-{:05}-of-{:05}.safetensors", n, n));
  EXPECT_EQ(names_in(dir / "m").size(), n + 2);
  const auto model = Model::load(dir / "m");
  ASSERT_TRUE(model.has_value()) << model.error().message();
  const Checkpoint whole = opened(drawn(config, 7));
  EXPECT_EQ(model->checkpoint().tensor_count(), whole.tensor_count());
  for (const std::string_view name : whole.names())
    EXPECT_TRUE(text_of(*model->checkpoint().find(name)) == text_of(*whole.find(name))) << name;
}

TEST(Init, AValueDependsOnSeedNameAndElementAlone) {
  const Checkpoint three = opened(drawn(tiny(3), 1)), nine = opened(drawn(tiny(9), 1));
  for (const std::string_view name : three.names())
    EXPECT_TRUE(text_of(*three.find(name)) == text_of(*nine.find(name))) << name;
  EXPECT_FALSE(text_of(*nine.find("layers.3.attn.wq_a.weight")) ==
               text_of(*nine.find("layers.4.attn.wq_a.weight")));
}

TEST(Init, LargeTensorsStartAtMultiplesOf64Bytes) {
  const Buffer<std::byte> image = drawn(tiny(5), 1);
  const auto entries = parse_safetensors(image.span(), "image");
  ASSERT_TRUE(entries.has_value());
  for (const auto& [name, tensor] : *entries) {
    if (tensor.bytes() % 64 != 0) continue;
    EXPECT_EQ((tensor.data - image.data()) % 64, 0) << name;
  }
}

TEST(Init, AllFormatsLoad) {
  Config base = tiny(4);
  base.expert_format = Linear::Format::fp8;  // as in the -Base releases
  for (const StorageFormat format : {StorageFormat::published, StorageFormat::bf16, StorageFormat::f32}) {
    for (const Config& config : {tiny(4), base}) {
      const Config stored = config_for_format(config, format);
      const Checkpoint checkpoint = opened(drawn(config, 1, format));
      expect_inventory(checkpoint, config, format);
      const auto model = Model::bind(stored, opened(drawn(config, 1, format)));
      ASSERT_TRUE(model.has_value()) << model.error().message();
      EXPECT_EQ(model->quantised(), format == StorageFormat::published);
      const auto reread = parse_config(config_to_json(stored));
      ASSERT_TRUE(reread.has_value()) << reread.error().message();
      EXPECT_EQ(*reread, stored);
    }
  }
}

// Laws -----------------------------------------------------------------------------------------------------

struct Moments {
  double mean = 0, deviation = 0, largest = 0;
};

Moments moments(const std::vector<float>& values) {
  Moments m;
  double square = 0;
  for (const float x : values) {
    m.mean += x;
    square += static_cast<double>(x) * x;
    m.largest = std::max(m.largest, std::fabs(static_cast<double>(x)));
    EXPECT_TRUE(std::isfinite(x));
  }
  const auto n = static_cast<double>(values.size());
  m.mean /= n;
  m.deviation = std::sqrt(square / n - m.mean * m.mean);
  return m;
}

std::uint8_t byte_at(const TensorRef& tensor, std::int64_t i) {
  return static_cast<std::uint8_t>(tensor.data[i]);
}

// The values of a tensor, dequantised with its scales if it has any.
std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorRef& t = *checkpoint.find(name);
  const TensorRef* scale = name.ends_with(".weight") ? checkpoint.find(scale_name(name)) : nullptr;
  const std::int64_t columns = t.shape.back() * (t.dtype == DType::i8 ? 2 : 1);
  const std::int64_t n = t.elements() * (t.dtype == DType::i8 ? 2 : 1);
  std::vector<float> values;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t row = i / columns, column = i % columns;
    switch (t.dtype) {
      case DType::f32: {
        float x = 0;
        std::memcpy(&x, t.data + 4 * i, 4);
        values.push_back(x);
        break;
      }
      case DType::bf16: {
        std::uint16_t x = 0;
        std::memcpy(&x, t.data + 2 * i, 2);
        values.push_back(bf16_to_f32(x));
        break;
      }
      case DType::f8_e4m3:
        values.push_back(e4m3_to_f32(byte_at(t, i)) *
                         e8m0_to_f32(byte_at(*scale, row / 128 * scale->shape[1] + column / 128)));
        break;
      case DType::i8:
        values.push_back(e2m1_to_f32(static_cast<std::uint8_t>(byte_at(t, i / 2) >> (4 * (i % 2)))) *
                         e8m0_to_f32(byte_at(*scale, row * scale->shape[1] + column / 32)));
        break;
      default:
        ADD_FAILURE() << name;
    }
  }
  return values;
}

TEST(Init, LinearWeightsHaveVarianceOneOverFanIn) {
  Config config = tiny(4);
  config.n_routed_experts = 8;
  config.hidden_size = 640;  // 25 blocks of 128 x 128 even in the smallest matrix of the test
  config.moe_intermediate_size = 768;
  for (const StorageFormat format : {StorageFormat::published, StorageFormat::bf16, StorageFormat::f32}) {
    const Checkpoint checkpoint = opened(drawn(config, 3, format));
    // Of the quantised ones the mean square over few blocks varies with the blocks' random scales: with
    // squares 1/4, 1 and 4 the mean over B blocks has a relative deviation of 0.93/sqrt(B).
    for (const auto& [name, fan_in, tolerance] :
         {std::tuple<std::string, double, double>{"layers.3.ffn.experts.0.w1.weight", 640, 0.02},
          {"layers.3.ffn.experts.7.w2.weight", 768, 0.02},
          {"mtp.0.e_proj.weight", 640, 0.25},
          {"layers.2.ffn.shared_experts.w2.weight", 768, 0.25},
          {"layers.2.attn.compressor.wkv.weight", 640, 0.01},
          {"layers.2.ffn.gate.weight", 640, 0.02},
          {"layers.1.hc_attn_fn", 4.0 * 640, 0.01},
          {"head.weight", 640, 0.01}}) {
      const Moments m = moments(values_of(checkpoint, name));
      EXPECT_NEAR(m.mean * std::sqrt(fan_in), 0, 0.03) << name;
      EXPECT_NEAR(m.deviation * std::sqrt(fan_in), 1, tolerance) << name;
      EXPECT_LT(m.largest * std::sqrt(fan_in), 9) << name;
    }
  }
}

TEST(Init, BlockScalesDifferAndNoCodeIsNaN) {
  const Checkpoint checkpoint = opened(drawn(tiny(5), 3));
  std::map<int, int> fp4_scales;
  for (const std::string_view name : checkpoint.names()) {
    const TensorRef& t = *checkpoint.find(name);
    for (std::int64_t i = 0; i < t.bytes() && t.dtype == DType::f8_e4m3; ++i)
      ASSERT_NE(byte_at(t, i) & 0x7f, 0x7f) << name << " at " << i;
    for (std::int64_t i = 0; i < t.bytes() && t.dtype == DType::f8_e8m0; ++i)
      if (name.find(".experts.") != std::string_view::npos) ++fp4_scales[byte_at(t, i)];
  }
  // Inner width and hidden size are the same here, so there are three scales in all, as often as one another.
  ASSERT_EQ(fp4_scales.size(), 3U);
  const int total = fp4_scales.begin()->second * 3;
  EXPECT_EQ(fp4_scales.rbegin()->first - fp4_scales.begin()->first, 2);
  for (const auto& [scale, count] : fp4_scales) EXPECT_NEAR(count * 3, total, total * 0.05) << scale;
}

TEST(Init, TheRestHasItsOwnLaws) {
  Config config = tiny(4);
  config.hidden_size = 2048;
  config.n_routed_experts = 1024;
  config.moe_intermediate_size = 1;
  config.dense_format = config.expert_format = Linear::Format::bf16;
  config.hc_mult = 1;
  const Checkpoint checkpoint = opened(drawn(config, 3));
  for (const auto& [name, mean, deviation] : {std::tuple<std::string, double, double>{"embed.weight", 0, 1},
                                              {"layers.0.attn_norm.weight", 1, 0.1},
                                              {"norm.weight", 1, 0.1},
                                              {"layers.3.ffn.gate.bias", 0, 0.1},
                                              {"layers.3.attn.compressor.ape", 0, 0.3}}) {
    const Moments m = moments(values_of(checkpoint, name));
    EXPECT_NEAR(m.mean, mean, 0.1 * deviation) << name;
    EXPECT_NEAR(m.deviation, deviation, 0.1 * deviation) << name;
  }
  for (const auto& [name, low, high] :
       {std::tuple<std::string, double, double>{"layers.0.hc_attn_scale", 0.1, 0.9},
        {"layers.0.hc_attn_base", -1.2, 1.2},
        {"layers.0.attn.attn_sink", -2, 2}}) {
    for (const float x : values_of(checkpoint, name)) EXPECT_TRUE(x > low && x < high) << name << ' ' << x;
  }
}

TEST(Init, HashTablesNameDistinctExpertsEvenly) {
  Config config = tiny(3);
  config.vocab_size = 8000;
  const Checkpoint checkpoint = opened(drawn(config, 3));
  const TensorRef& table = *checkpoint.find("layers.1.ffn.gate.tid2eid");
  ASSERT_EQ(table.shape, (Shape{8000, 4}));
  std::vector<std::int64_t> ids(32'000), counts(16);
  std::memcpy(ids.data(), table.data, 8 * ids.size());
  for (std::size_t token = 0; token < 8000; ++token) {
    const std::set<std::int64_t> row(ids.begin() + static_cast<std::ptrdiff_t>(4 * token),
                                     ids.begin() + static_cast<std::ptrdiff_t>(4 * token + 4));
    ASSERT_EQ(row.size(), 4U) << token;
    ASSERT_TRUE(*row.begin() >= 0 && *row.rbegin() < 16) << token;
    for (const std::int64_t id : row) ++counts[static_cast<std::size_t>(id)];
  }
  for (const std::int64_t count : counts) EXPECT_NEAR(static_cast<double>(count), 2000, 200);
}

// Activations ----------------------------------------------------------------------------------------------

class Watcher : public Tap {
 public:
  void floats(const std::string& name, const float* data, const Shape& shape) override {
    const std::int64_t n = TensorRef{DType::f32, shape, nullptr}.elements();
    double square = 0;
    for (std::int64_t i = 0; i < n; ++i) square += static_cast<double>(data[i]) * data[i];
    if (name.ends_with("streams_out")) streams.push_back(std::sqrt(square / static_cast<double>(n)));
  }
  void ints(const std::string& name, const std::int32_t* data, const Shape& shape) override {
    if (!name.ends_with("router.indices")) return;
    const std::int64_t n = TensorRef{DType::i32, shape, nullptr}.elements();
    experts.push_back(std::set<std::int32_t>(data, data + n).size());
  }

  std::vector<double> streams;       // root mean square behind each layer
  std::vector<std::size_t> experts;  // with a token, in each layer
};

TEST(Init, ActivationsStayOfOrderOneThrough43Layers) {
  const auto model = Model::bind(tiny(43), opened(drawn(tiny(43), 11)));
  ASSERT_TRUE(model.has_value()) << model.error().message();
  ThreadPool pool(2);
  const auto backend = make_backend("cpu", "", pool);
  ASSERT_TRUE(backend.has_value()) << backend.error().message();
  Transformer transformer(*model, **backend, Numerics::official);
  Watcher watcher;
  transformer.set_tap(&watcher);
  std::vector<std::int32_t> tokens;
  const Philox random(5, 0);
  for (std::uint64_t i = 0; i < 200; ++i)
    tokens.push_back(static_cast<std::int32_t>(random.block(i)[0] % 512));
  SequenceState state(model->state_layout());
  const BatchItem item{&state, tokens, BatchItem::Logits::all};
  const auto logits = transformer.forward({&item, 1});
  ASSERT_TRUE(logits.has_value()) << logits.error().message();

  ASSERT_EQ(watcher.streams.size(), 43U);
  for (std::size_t layer = 0; layer < 43; ++layer) {
    EXPECT_GT(watcher.streams[layer], 0.3) << "layer " << layer;
    EXPECT_LT(watcher.streams[layer], 10) << "layer " << layer;
  }
  const Moments m = moments({logits->begin(), logits->end()});
  RecordProperty("logits_deviation", std::to_string(m.deviation));
  RecordProperty("streams_first", std::to_string(watcher.streams.front()));
  RecordProperty("streams_last", std::to_string(watcher.streams.back()));
  EXPECT_NEAR(m.mean, 0, 0.2);
  EXPECT_GT(m.deviation, 0.5);
  EXPECT_LT(m.deviation, 2);
  ASSERT_EQ(watcher.experts.size(), 43U);
  for (const std::size_t used : watcher.experts) EXPECT_GE(used, 8U);  // of 16
  // Different tokens lead to different predictions.
  std::set<std::int64_t> best;
  for (std::size_t t = 0; t < 200; ++t) {
    const auto row = logits->subspan(t * 512, 512);
    best.insert(std::max_element(row.begin(), row.end()) - row.begin());
  }
  EXPECT_GT(best.size(), 20U);
}

// Directories ----------------------------------------------------------------------------------------------

TEST(Init, ReplacesACheckpointOnlyWhenForced) {
  const TemporaryDirectory dir;
  InitOptions options;
  options.shard_bytes = 300'000;
  ASSERT_TRUE(init(tiny(3), dir.path(), options).has_value());
  test::write_text(dir / "tokenizer.json", "{}");
  const std::set<std::string> before = names_in(dir.path());

  options.shard_bytes = 1'000'000'000;
  const auto refused = init(tiny(4), dir.path(), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::invalid_argument);
  EXPECT_THAT(refused.error().message(), HasSubstr("there already; --force replaces the checkpoint"));
  EXPECT_EQ(names_in(dir.path()), before);

  options.force = true;
  ASSERT_TRUE(init(tiny(4), dir.path(), options).has_value());
  EXPECT_EQ(names_in(dir.path()),
            (std::set<std::string>{"config.json", "model.safetensors", "tokenizer.json"}));
  const auto model = Model::load(dir.path());
  ASSERT_TRUE(model.has_value()) << model.error().message();
  EXPECT_EQ(model->config().num_hidden_layers, 4);
}

TEST(Init, StoppedWorkLeavesNothing) {
  const TemporaryDirectory dir;
  InitOptions options;
  options.shard_bytes = 300'000;
  std::int64_t calls = 0, last = 0;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    EXPECT_GT(done, last);
    EXPECT_LE(done, total);
    last = done;
    return ++calls < 5;
  };
  const auto stopped = init(tiny(4), dir / "a", options);
  ASSERT_FALSE(stopped.has_value());
  EXPECT_EQ(stopped.error().code(), ErrorCode::cancelled);
  EXPECT_EQ(calls, 5);
  EXPECT_TRUE(names_in(dir.path()).empty());

  // Nor does it harm what was there.
  options.progress = {};
  ASSERT_TRUE(init(tiny(3), dir / "a", options).has_value());
  const std::set<std::string> before = names_in(dir / "a");
  options.force = true;
  options.progress = [](std::int64_t, std::int64_t) { return false; };
  EXPECT_FALSE(init(tiny(4), dir / "a", options).has_value());
  EXPECT_EQ(names_in(dir / "a"), before);
  EXPECT_TRUE(Model::load(dir / "a").has_value());
}

TEST(InitDeathTest, AFullDiskIsAnErrorThatLeavesNothing) {
  const TemporaryDirectory dir;
  const auto child = [&] {
    std::signal(SIGXFSZ, SIG_IGN);  // then write(2) fails as on a full disk
    const rlimit limit{200'000, 200'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto summary = init(tiny(4), dir / "a");
    const bool said =
        !summary && summary.error().message().find("model.safetensors: cannot write") != std::string::npos;
    std::_Exit(said && names_in(dir.path()).empty() ? 0 : 1);
  };
  EXPECT_EXIT(child(), testing::ExitedWithCode(0), "");
}

TEST(Init, RefusesPlacesThatCannotHoldIt) {
  const TemporaryDirectory dir;
  test::write_text(dir / "file", "x");
  const auto at_file = init(tiny(3), dir / "file");
  ASSERT_FALSE(at_file.has_value());
  EXPECT_THAT(at_file.error().message(), HasSubstr("file: cannot create the directory"));
  EXPECT_FALSE(init(tiny(3), dir / "file" / "below").has_value());
  EXPECT_FALSE(init(tiny(3), "").has_value());
  EXPECT_EQ(names_in(dir.path()), std::set<std::string>{"file"});

  InitOptions options;
  options.shard_bytes = 0;
  EXPECT_FALSE(init(tiny(3), dir / "a", options).has_value());

  // 865 GB in memory.
  ThreadPool pool(1);
  const auto pro = init_checkpoint_bytes(*preset_config("pro"), 0, StorageFormat::f32, pool);
  ASSERT_FALSE(pro.has_value());
  EXPECT_EQ(pro.error().code(), ErrorCode::resource_exhausted);
}

}  // namespace
}  // namespace hadal
