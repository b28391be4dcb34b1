// The whole differentiable model: its losses and every gradient against PyTorch's autograd on a tiny model
// with every kind of block (tools/record_gradients.py), its forward against inference, and its bits against
// the number of threads.
#include "train/objective.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include <gtest/gtest.h>

#include "golden_data.h"
#include "model/transformer.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"
#include "train/initial_weights.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

constexpr float kMtpWeight = 0.3F, kBalanceWeight = 0.1F, kIndexWeight = 0.7F;

class ObjectiveTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::filesystem::path directory = std::filesystem::path(HADAL_TEST_DATA) / "gradients";
    auto model = Model::load(directory);
    ASSERT_TRUE(model.has_value()) << model.error().message();
    model_ = std::make_unique<Model>(std::move(*model));
    golden_ = std::make_unique<test::GoldenFile>(test::GoldenFile::open(directory / "gradients.safetensors"));
    tokens_ = golden_->values<std::int32_t>("tokens");
    counts_ = golden_->values<std::uint8_t>("counts");
    const Shape& shape = golden_->at("tokens").shape;
    batch_ = {shape[0], shape[1] - 2, tokens_, counts_, {}};
    weights_ = std::make_unique<ParameterSet>(ParameterSet::from(*model_, pool_));
  }

  const Config& config() const { return model_->config(); }
  static ObjectiveOptions options(bool sparse) {
    ObjectiveOptions o;
    o.precision = Precision::f32;
    o.sparse = sparse;
    o.index_loss = true;
    o.mtp_weight = kMtpWeight;
    o.balance_weight = kBalanceWeight;
    o.index_weight = kIndexWeight;
    return o;
  }
  Objective objective(const ObjectiveOptions& o, ThreadPool& pool) {
    auto made = Objective::create(config(), pool, o);
    EXPECT_TRUE(made.has_value());
    return std::move(*made);
  }
  void expect_golden(bool sparse);

  ThreadPool pool_{2};
  std::unique_ptr<Model> model_;
  std::unique_ptr<test::GoldenFile> golden_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint8_t> counts_;
  TrainingBatch batch_;
  std::unique_ptr<ParameterSet> weights_;
};

double norm(std::span<const float> x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

void ObjectiveTest::expect_golden(bool sparse) {
  const std::string stage = sparse ? "sparse" : "dense";
  Objective o = objective(options(sparse), pool_);
  ParameterSet gradients(config());
  const Losses losses = o.forward_backward(*weights_, batch_, 1, gradients);
  const std::vector<float> expected = golden_->floats(stage + ".losses");
  EXPECT_NEAR(losses.ce, expected[0], 1e-5);
  EXPECT_NEAR(losses.mtp, expected[1], 1e-5);
  EXPECT_NEAR(losses.balance, expected[2], 1e-5);
  EXPECT_NEAR(losses.index_kl, expected[3], 1e-5);

  double worst = 0;
  int compared = 0;
  for (const Parameter& p : gradients.parameters()) {
    if (!p.differentiable()) continue;
    const std::vector<float> golden = golden_->floats(stage + ".gradient." + p.info.name);
    const std::span<const float> ours = std::as_const(gradients)[p];
    ASSERT_EQ(ours.size(), golden.size()) << p.info.name;
    std::vector<float> difference(ours.begin(), ours.end());
    for (std::size_t i = 0; i < golden.size(); ++i) difference[i] -= golden[i];
    EXPECT_GT(norm(golden), 0) << p.info.name;
    const double error = norm(difference) / norm(golden);
    EXPECT_LT(error, 1e-4) << stage << " " << p.info.name << ": norm " << norm(ours) << ", golden "
                           << norm(golden);
    worst = std::max(worst, error);
    ++compared;
  }
  EXPECT_GT(compared, 100);
  RecordProperty("worst_relative_error", std::to_string(worst));
  std::printf("%s: %d gradients, worst relative error %.2e\n", stage.c_str(), compared, worst);
}

TEST_F(ObjectiveTest, DenseStageAgainstAutograd) {
  expect_golden(false);
}

TEST_F(ObjectiveTest, SparseStageAgainstAutograd) {
  expect_golden(true);
}

// Inference in `exact` numerics, one prompt at a time, must see the same logits: dense attention where a
// sequence is no longer than the indexer can choose from, sparse where it is.
TEST_F(ObjectiveTest, ForwardIsInference) {
  Objective o = objective(options(true), pool_);
  std::vector<float> logits(static_cast<std::size_t>(batch_.n_tokens() * config().vocab_size));
  o.logits(*weights_, batch_, logits);
  auto backend = make_backend("cpu", "", pool_);
  ASSERT_TRUE(backend.has_value());
  Transformer transformer(*model_, **backend, Numerics::exact);
  for (std::int64_t b = 0; b < batch_.size; ++b) {
    SequenceState state(model_->state_layout());
    const BatchItem item{&state,
                         batch_.tokens.subspan(static_cast<std::size_t>(b * (batch_.length + 2)),
                                               static_cast<std::size_t>(batch_.length)),
                         BatchItem::Logits::all};
    const auto expected = transformer.forward({&item, 1});
    ASSERT_TRUE(expected.has_value()) << expected.error().message();
    const float* ours = logits.data() + b * batch_.length * config().vocab_size;
    double worst = 0;
    for (std::size_t i = 0; i < expected->size(); ++i)
      worst = std::max(worst, std::fabs(double{ours[i]} - double{(*expected)[i]}));
    EXPECT_LT(worst, 1e-5);
  }
}

TEST_F(ObjectiveTest, TheBitsDoNotDependOnThreads) {
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    ObjectiveOptions with = options(true);
    with.precision = precision;
    ThreadPool one(1), three(3);
    ParameterSet a(config()), b(config());
    Objective on_one = objective(with, one), on_three = objective(with, three);
    const Losses la = on_one.forward_backward(*weights_, batch_, 1, a);
    const Losses lb = on_three.forward_backward(*weights_, batch_, 1, b);
    EXPECT_EQ(la.total, lb.total);
    for (const Parameter& p : a.parameters()) {
      EXPECT_TRUE(std::ranges::equal(std::as_const(a)[p], std::as_const(b)[p])) << p.info.name;
    }
  }
}

// Sequences of one batch do not see each other: their gradients add up.
TEST_F(ObjectiveTest, GradientsOfSequencesAddUp) {
  counts_.assign(counts_.size(), 1);
  batch_.counts = counts_;
  Objective o = objective(options(true), pool_);
  ParameterSet together(config()), apart(config());
  o.forward_backward(*weights_, batch_, 1, together);
  const auto stride = static_cast<std::size_t>(batch_.length + 2);
  for (std::int64_t b = 0; b < batch_.size; ++b) {
    TrainingBatch one = batch_;
    one.size = 1;
    one.tokens = batch_.tokens.subspan(static_cast<std::size_t>(b) * stride, stride);
    one.counts = batch_.counts.subspan(static_cast<std::size_t>(b) * stride, stride);
    o.forward_backward(*weights_, one, 1.0F / static_cast<float>(batch_.size), apart);
  }
  for (const Parameter& p : together.parameters()) {
    const std::span<const float> a = std::as_const(together)[p], b = std::as_const(apart)[p];
    for (std::size_t i = 0; i < a.size(); ++i)
      ASSERT_NEAR(a[i], b[i], 1e-5 * norm(a) + 1e-8) << p.info.name << " " << i;
  }
}

TEST_F(ObjectiveTest, Bf16IsNear) {
  ObjectiveOptions with = options(false);
  ParameterSet exact(config()), rounded(config());
  objective(with, pool_).forward_backward(*weights_, batch_, 1, exact);
  with.precision = Precision::bf16;
  objective(with, pool_).forward_backward(*weights_, batch_, 1, rounded);
  std::vector<float> difference(exact.values().begin(), exact.values().end());
  for (std::size_t i = 0; i < difference.size(); ++i) difference[i] -= rounded.values()[i];
  // 2^-9 for every operand, and in so narrow a model some choices and clamps fall the other way.
  EXPECT_LT(norm(difference), 0.1 * norm(exact.values()));
  EXPECT_GT(norm(difference), 0);
}

// When the indexer learns alone, its gradients are those of before and all others stay.
TEST_F(ObjectiveTest, IndexerAlone) {
  ObjectiveOptions with = options(false);
  ParameterSet all(config()), alone(config());
  objective(with, pool_).forward_backward(*weights_, batch_, 1, all);
  with.indexer_alone = true;
  objective(with, pool_).forward_backward(*weights_, batch_, 1, alone);
  for (const Parameter& p : all.parameters()) {
    if (p.info.name.find(".indexer.") != std::string::npos) {
      EXPECT_TRUE(std::ranges::equal(std::as_const(all)[p], std::as_const(alone)[p])) << p.info.name;
    } else {
      EXPECT_EQ(norm(std::as_const(alone)[p]), 0) << p.info.name;
    }
  }
}

// Routing given from outside is followed: the model's own gives its own losses, another one does not.
TEST_F(ObjectiveTest, RoutingOverride) {
  Objective o = objective(options(false), pool_);
  const Losses own = o.evaluate(*weights_, batch_);
  std::vector<std::int32_t> routing(o.routing().begin(), o.routing().end());
  const std::vector<std::int64_t> load(o.expert_load().begin(), o.expert_load().end());
  const auto per_block = batch_.n_tokens() * config().num_experts_per_tok;
  for (std::int64_t block = 0; block < config().num_blocks(); ++block) {
    const auto first = load.begin() + block * config().n_routed_experts;
    EXPECT_EQ(std::accumulate(first, first + config().n_routed_experts, std::int64_t{0}), per_block);
  }
  batch_.routing = routing;
  EXPECT_EQ(o.evaluate(*weights_, batch_).total, own.total);
  for (std::int32_t& e : routing) e = (e + 1) % static_cast<std::int32_t>(config().n_routed_experts);
  EXPECT_NE(o.evaluate(*weights_, batch_).total, own.total);
}

// Quantisation-aware: losses and gradients at weights w are those at w rounded to FP4, bit for bit; the
// gradient is handed to w as it is.
TEST(QuantisationAware, ExpertsPassTheGradientStraightThrough) {
  ThreadPool pool(2);
  auto recipe = parse_recipe(test::tiny_recipe("/tmp", 9), "/tmp");
  ASSERT_TRUE(recipe.has_value());
  const Config& config = recipe->config;
  const ParameterSet weights = initial_weights(*recipe, pool);
  ParameterSet rounded = initial_weights(*recipe, pool);
  double moved = 0;
  for (const Parameter& p : rounded.parameters()) {
    if (p.info.role != Role::expert) continue;
    const std::span<float> values = rounded[p];
    for (std::size_t i = 0; i < values.size(); i += 32) {
      float block[32];
      std::uint8_t codes[32];
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(i), 32, block);
      const float scale = e8m0_to_f32(ref::quantise_e2m1_block(block, 32, codes));
      for (std::size_t j = 0; j < 32; ++j) {
        const float value = e2m1_to_f32(codes[j]) * scale;
        moved += std::fabs(double{value} - double{values[i + j]});
        values[i + j] = value;
      }
    }
  }
  EXPECT_GT(moved, 0);
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < 2 * 26; ++i) tokens.push_back((i * i * 7 + 3) % 64);
  const TrainingBatch batch{2, 24, tokens, {}, {}};
  ObjectiveOptions options;
  options.precision = Precision::f32;
  auto plain = Objective::create(config, pool, options);
  options.fp4 = true;
  auto aware = Objective::create(config, pool, options);
  ASSERT_TRUE(plain.has_value() && aware.has_value());
  ParameterSet expected(config), got(config);
  const Losses at_rounded = plain->forward_backward(rounded, batch, 1, expected);
  const Losses at_master = aware->forward_backward(weights, batch, 1, got);
  EXPECT_EQ(at_master.total, at_rounded.total);
  for (const Parameter& p : got.parameters())
    EXPECT_TRUE(std::ranges::equal(std::as_const(got)[p], std::as_const(expected)[p])) << p.info.name;

  // The indexer's q and rows: the loss is that of rounded ones, the gradient near that of the exact ones.
  options.sparse = options.index_loss = true;
  options.fp4 = false;
  ParameterSet exact(config), quantised(config);
  plain->set_options(options);
  const double kl = plain->forward_backward(rounded, batch, 1, exact).index_kl;
  options.fp4 = true;
  aware->set_options(options);
  const double kl_fp4 = aware->forward_backward(weights, batch, 1, quantised).index_kl;
  EXPECT_NE(kl_fp4, kl);
  EXPECT_NEAR(kl_fp4, kl, 0.3 * kl);
  for (const Parameter& p : exact.parameters()) {
    if (!is_indexer(p.info)) continue;
    const auto a = std::as_const(exact)[p], b = std::as_const(quantised)[p];
    const double along = std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
    EXPECT_GT(along, 0.5 * norm(a) * norm(b)) << p.info.name;
  }
}

TEST_F(ObjectiveTest, MixingMatricesAreDoublyStochastic) {
  Objective o = objective(options(false), pool_);
  o.evaluate(*weights_, batch_);
  EXPECT_NEAR(o.mixing_sums().least_row, 1, 1e-3);
  EXPECT_NEAR(o.mixing_sums().most_row, 1, 1e-3);
  EXPECT_NEAR(o.mixing_sums().least_column, 1, 1e-3);
  EXPECT_NEAR(o.mixing_sums().most_column, 1, 1e-3);
}

TEST_F(ObjectiveTest, RefusesWhatItCannotTrain) {
  Config two = config();
  two.num_nextn_predict_layers = 2;
  two.compress_ratios.push_back(0);
  const auto refused = Objective::create(two, pool_);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::unsupported);
}

}  // namespace
}  // namespace hadal
