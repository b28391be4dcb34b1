// The golden models: what the official code computed, held to at every position in every numerics mode, by
// the reference and by every instruction set that this machine has (docs/exactness.md).
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

#include "golden_data.h"
#include "model/transformer.h"
#include "ops/ref/ref.h"

namespace hadal {
namespace {

using test::GoldenFile;

struct GoldenCase {
  std::string model;    // directory of the checkpoint
  std::string vectors;  // directory of its golden files
  Numerics numerics;
};

struct BackendChoice {
  std::string name;
  std::string isa;
};

// "t1_m2_official_cpuavx512"
std::string case_name(const GoldenCase& golden_case, const BackendChoice& choice) {
  std::string name =
      golden_case.model + "_" + std::string(to_string(golden_case.numerics)) + "_" + choice.name + choice.isa;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
void PrintTo(const GoldenCase& golden_case, std::ostream* out) {
  *out << golden_case.model;
}
void PrintTo(const BackendChoice& choice, std::ostream* out) {
  *out << choice.name << choice.isa;
}

std::string golden_name(Numerics numerics) {
  return "golden.m" + std::to_string(static_cast<int>(numerics)) + ".safetensors";
}

// Keeps what a forward computed, by the name of the golden tensor.
class Recorder : public Tap {
 public:
  void floats(const std::string& name, const float* data, const Shape& shape) override {
    const auto n = static_cast<std::size_t>(TensorRef{DType::f32, shape, nullptr}.elements());
    values_[name].assign(data, data + n);
  }
  void ints(const std::string& name, const std::int32_t* data, const Shape& shape) override {
    const auto n = static_cast<std::size_t>(TensorRef{DType::i32, shape, nullptr}.elements());
    ids_[name].assign(data, data + n);
  }
  const std::vector<float>* values(const std::string& name) const {
    const auto at = values_.find(name);
    return at == values_.end() ? nullptr : &at->second;
  }
  const std::vector<std::int32_t>* ids(const std::string& name) const {
    const auto at = ids_.find(name);
    return at == ids_.end() ? nullptr : &at->second;
  }

 private:
  std::map<std::string, std::vector<float>> values_;
  std::map<std::string, std::vector<std::int32_t>> ids_;
};

float max_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float worst = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (a[i] == b[i]) continue;  // infinities too
    const float difference = std::fabs(a[i] - b[i]);
    worst = difference <= worst ? worst : difference;  // a NaN sticks
  }
  return worst;
}

class GoldenTest : public testing::TestWithParam<std::tuple<GoldenCase, BackendChoice>> {
 protected:
  void SetUp() override {
    const auto& [golden_case, choice] = GetParam();
    const auto root = test::reference_directory() / "models";
    if (!std::filesystem::exists(root / golden_case.model)) {
      GTEST_SKIP() << golden_case.model << " is not in " << root << " (set HADAL_REFERENCE)";
    }
    golden_ = GoldenFile::open(root / golden_case.vectors / golden_name(golden_case.numerics));
    auto model = Model::load(root / golden_case.model);
    ASSERT_TRUE(model.has_value()) << model.error().message();
    model_ = std::make_unique<Model>(std::move(*model));
    auto backend = make_backend(choice.name, choice.isa, pool_);
    if (!backend) GTEST_SKIP() << backend.error().message();
    backend_ = std::move(*backend);
    transformer_ = std::make_unique<Transformer>(*model_, *backend_, golden_case.numerics);
    for (const std::int64_t id : golden_.values<std::int64_t>("tokens"))
      tokens_.push_back(static_cast<std::int32_t>(id));
  }

  std::span<const std::int32_t> tokens(std::size_t begin, std::size_t end) const {
    return std::span(tokens_).subspan(begin, end - begin);
  }
  std::vector<float> run(SequenceState& state, std::span<const std::int32_t> part) {
    const BatchItem item{&state, part, BatchItem::Logits::all};
    const auto logits = transformer_->forward({&item, 1});
    EXPECT_TRUE(logits.has_value());
    return {logits->begin(), logits->end()};
  }
  // Every recorded tensor under `prefix` that the forward also saw.
  int compare_recorded(const Recorder& seen, const std::string& golden_prefix, float tolerance) {
    int compared = 0;
    for (const auto& entry : golden_.entries()) {
      if (!entry.name.starts_with(golden_prefix)) continue;
      const std::string name = entry.name.substr(golden_prefix.size());
      if (const auto* ids = seen.ids(name)) {
        auto expected = golden_.values<std::int32_t>(entry.name);
        auto actual = *ids;
        if (name.ends_with("indexer.topk") && expected.size() != actual.size()) {
          // Fewer rows than index_topk existed in the recorded run, so its lists are shorter.
          const auto rows = static_cast<std::size_t>(entry.tensor.shape[0]);
          const std::size_t wide = actual.size() / rows, narrow = expected.size() / rows;
          std::vector<std::int32_t> cut;
          for (std::size_t r = 0; r < rows; ++r)
            cut.insert(cut.end(), actual.begin() + static_cast<std::ptrdiff_t>(r * wide),
                       actual.begin() + static_cast<std::ptrdiff_t>(r * wide + narrow));
          actual = cut;
        }
        EXPECT_EQ(actual, expected) << entry.name;
        ++compared;
      } else if (const auto* values = seen.values(name)) {
        EXPECT_LE(max_difference(*values, golden_.floats(entry.name)), tolerance) << entry.name;
        ++compared;
      }
    }
    return compared;
  }

  ThreadPool pool_{2};
  GoldenFile golden_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<std::int32_t> tokens_;
};

// What only T1 was recorded for: its MTP block, and the intermediates inside its layers.
class GoldenLayersTest : public GoldenTest {};
class GoldenCompactTest : public GoldenTest {};

TEST_P(GoldenTest, PrefillLogitsRowsAndSelections) {
  SequenceState state(model_->state_layout());
  Recorder seen;
  transformer_->set_tap(&seen);
  const auto logits = run(state, tokens_);
  const float worst = max_difference(logits, golden_.floats("prefill.logits"));
  RecordProperty("max_difference", std::to_string(worst));
  EXPECT_LE(worst, 1e-4F);
  const int compared = compare_recorded(seen, "run300.", 1e-4F);
  const bool recorded = std::any_of(golden_.entries().begin(), golden_.entries().end(),
                                    [](const auto& entry) { return entry.name.starts_with("run300."); });
  if (recorded) {
    EXPECT_GT(compared, 2);
  }
}

// The selections of each indexer on the compact state, whose index rows are FP4. Each layer gets the streams
// of a run that keeps float32 rows: what the compact state rounds besides (rope entries, to BF16) would reach
// a later layer's scores and might turn a close choice.
TEST_P(GoldenCompactTest, SelectionsAreTheRecordedOnes) {
  Recorder wide;
  transformer_->set_tap(&wide);
  SequenceState state(model_->state_layout());
  run(state, tokens_);
  const Config& config = model_->config();
  int compared = 0;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.attention_kind(layer) != AttentionKind::csa) continue;
    std::vector<float> streams(tokens_.size() *
                               static_cast<std::size_t>(config.hc_mult * config.hidden_size));
    if (layer == 0) {
      ref::embed({tokens_, &model_->weights().embed, config.hc_mult, streams.data()}, pool_);
    } else {
      streams = *wide.values("layers." + std::to_string(layer - 1) + ".streams_out");
    }
    Recorder seen;
    transformer_->set_tap(&seen);
    SequenceState compact(model_->state_layout(StateFormat::compact));
    ASSERT_TRUE(transformer_->forward_block(compact, tokens_, layer, streams));
    const std::string name = "layers." + std::to_string(layer) + ".attn.indexer.topk";
    ASSERT_NE(seen.ids(name), nullptr);
    EXPECT_EQ(*seen.ids(name), golden_.values<std::int32_t>("run300." + name)) << name;
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

TEST_P(GoldenTest, PrefillThenDecode) {
  SequenceState state(model_->state_layout());
  const std::size_t prefill = 133;
  run(state, tokens(0, prefill));
  std::vector<float> decoded;
  for (std::size_t t = prefill; t < tokens_.size(); ++t) {
    const auto row = run(state, tokens(t, t + 1));
    decoded.insert(decoded.end(), row.begin(), row.end());
  }
  EXPECT_LE(max_difference(decoded, golden_.floats("decode.logits")), 1e-4F);
}

TEST_P(GoldenLayersTest, MtpLogits) {
  SequenceState state(model_->state_layout());
  run(state, tokens_);
  const auto all = transformer_->streams();
  const std::size_t width = all.size() / tokens_.size(), n = tokens_.size() - 1;
  const std::vector<float> streams(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(n * width));
  Recorder seen;
  transformer_->set_tap(&seen);
  const auto logits = transformer_->forward_mtp(state, streams, tokens(1, tokens_.size()));
  ASSERT_TRUE(logits.has_value());
  EXPECT_LE(max_difference(*logits, golden_.floats("mtp.logits")), 1e-4F);
  EXPECT_GE(compare_recorded(seen, "run300.", 1e-4F), 1);
}

// Each layer alone, on the recorded streams of the layer before: tells a wrong op from an unlucky rounding.
TEST_P(GoldenLayersTest, LayerByLayer) {
  if (golden_.find("short.layers.0.streams_out") == nullptr)
    GTEST_SKIP() << "the copy in tests/data has no layers of this mode (set HADAL_REFERENCE)";
  Recorder seen;
  transformer_->set_tap(&seen);
  const std::size_t n = 40;
  const auto layers = static_cast<std::size_t>(model_->config().num_hidden_layers);
  int compared = 0;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    SequenceState state(model_->state_layout());
    std::vector<float> streams;
    if (layer == 0) {
      streams.resize(n * static_cast<std::size_t>(model_->config().hc_mult * model_->config().hidden_size));
      ref::embed({tokens(0, n), &model_->weights().embed, model_->config().hc_mult, streams.data()}, pool_);
    } else {
      streams = golden_.floats("short.layers." + std::to_string(layer - 1) + ".streams_out");
    }
    ASSERT_TRUE(transformer_->forward_block(state, tokens(0, n), static_cast<std::int64_t>(layer), streams));
  }
  compared += compare_recorded(seen, "short.", 5e-5F);
  EXPECT_GE(compared, 15 * static_cast<int>(layers));

  // And the whole of it in one run: the head.
  SequenceState state(model_->state_layout());
  Recorder whole;
  transformer_->set_tap(&whole);
  const auto logits = run(state, tokens(0, n));
  EXPECT_LE(max_difference(logits, golden_.floats("short.logits")), 1e-4F);
  EXPECT_GE(compare_recorded(whole, "short.", 1e-4F), 15 * static_cast<int>(layers) + 2);
}

std::string test_name(const testing::TestParamInfo<GoldenTest::ParamType>& test) {
  return case_name(std::get<0>(test.param), std::get<1>(test.param));
}

const auto kBackends = testing::Values(BackendChoice{"ref", ""}, BackendChoice{"cpu", "avx512bf16"},
                                       BackendChoice{"cpu", "avx512vnni"}, BackendChoice{"cpu", "avx512"},
                                       BackendChoice{"cpu", "avx2vnni"}, BackendChoice{"cpu", "avx2"},
                                       BackendChoice{"cpu", "scalar"}, BackendChoice{"cuda", ""});
const auto kT1 = testing::Values(GoldenCase{"t1-m2", "t1-m2", Numerics::exact},
                                 GoldenCase{"t1-m2", "t1-m2", Numerics::qsim},
                                 GoldenCase{"t1-m2", "t1-m2", Numerics::official});
const auto kT2 = testing::Values(
    GoldenCase{"t2-m2", "t2-m2", Numerics::exact}, GoldenCase{"t2-m2", "t2-m2", Numerics::qsim},
    GoldenCase{"t2-m2", "t2-m2", Numerics::official}, GoldenCase{"t2-m0", "t2-m2", Numerics::exact},
    GoldenCase{"t2-m0", "t2-m2", Numerics::qsim});

INSTANTIATE_TEST_SUITE_P(T1, GoldenTest, testing::Combine(kT1, kBackends), test_name);
INSTANTIATE_TEST_SUITE_P(T2, GoldenTest, testing::Combine(kT2, kBackends), test_name);
INSTANTIATE_TEST_SUITE_P(All, GoldenCompactTest,
                         testing::Combine(testing::Values(GoldenCase{"t1-m2", "t1-m2", Numerics::qsim},
                                                          GoldenCase{"t1-m2", "t1-m2", Numerics::official},
                                                          GoldenCase{"t2-m2", "t2-m2", Numerics::official}),
                                          testing::Values(BackendChoice{"ref", ""}, BackendChoice{"cpu", ""},
                                                          BackendChoice{"cuda", ""})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(T1, GoldenLayersTest, testing::Combine(kT1, kBackends), test_name);

}  // namespace
}  // namespace hadal
