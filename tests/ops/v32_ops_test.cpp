// What the ops do for DeepSeek-V3.2 alone: FP8 index rows, attention whose values are a part of its rows,
// groups of experts, the LayerNorm and the other rope. Fast paths against the reference, the rest against
// numbers.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include <gtest/gtest.h>

#include "base/buffer.h"
#include "ops/backend.h"
#include "ops/ref/ref.h"

namespace hadal {
namespace {

std::vector<float> normal(std::int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw;
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = draw(generator);
  return out;
}

// Rows as the state keeps them, in pages of 128.
struct Rows {
  Rows(RowShape row_shape, std::int64_t n, unsigned seed) : shape(row_shape) {
    const std::vector<float> values = normal(n * shape.dim, seed);
    for (std::int64_t i = 0; i < n; ++i) {
      if (i % 128 == 0) {
        memory.emplace_back(static_cast<std::size_t>(128 * shape.bytes()));
        pages.push_back(memory.back().data());
      }
      store_row(shape, values.data() + i * shape.dim, memory.back().data(), i % 128);
    }
  }
  PagedRows paged() const { return {pages.data(), 0, 128, shape}; }

  RowShape shape;
  std::vector<Buffer<std::byte>> memory;
  std::vector<const std::byte*> pages;
};

class V32Ops : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = make_backend("cpu", GetParam(), pool_);
    if (!backend) GTEST_SKIP() << backend.error().message();
    cpu_ = std::move(*backend);
    reference_ = std::move(*make_backend("ref", "", pool_));
  }
  ThreadPool pool_{2};
  std::unique_ptr<Backend> cpu_, reference_;
};

TEST_P(V32Ops, TheBestRowsAreSelected) {
  const std::int64_t dim = 128, k = 40, n_rows = 700;
  for (const std::int64_t heads : {3, 64}) {
    const Rows rows({RowFormat::fp8_f32, dim, 0}, n_rows, 1);
    const std::vector<std::int64_t> visible = {17, 64, 333, n_rows};
    const auto n = static_cast<std::int64_t>(visible.size());
    std::vector<float> q = normal(n * heads * dim, 2);
    const std::vector<float> weights = normal(n * heads, 3);
    reference_->run(QuantiseParams{QuantiseParams::Format::e4m3_128, n * heads, dim, dim, q.data()});
    std::vector<std::int32_t> chosen(static_cast<std::size_t>(n * k));
    cpu_->run(
        IndexSelectParams{n, heads, dim, k, q.data(), weights.data(), rows.paged(), visible, chosen.data()});
    std::vector<float> scores(static_cast<std::size_t>(n * n_rows));
    reference_->run(IndexScoresParams{n, heads, dim, q.data(), weights.data(), rows.paged(), visible, n_rows,
                                      scores.data()});
    for (std::int64_t t = 0; t < n; ++t) {
      const float* own = scores.data() + t * n_rows;
      const std::int64_t seen = visible[static_cast<std::size_t>(t)], kept = std::min(k, seen);
      std::vector<float> sorted(own, own + seen);
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      const float least = sorted[static_cast<std::size_t>(kept - 1)];
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int32_t row = chosen[static_cast<std::size_t>(t * k + i)];
        if (i >= kept) {
          EXPECT_EQ(row, -1);
          continue;
        }
        ASSERT_TRUE(row >= 0 && row < seen);
        EXPECT_GE(own[row], least - 1e-4F * std::max(1.0F, std::fabs(least))) << heads << " " << t;
        EXPECT_TRUE(i == 0 || row > chosen[static_cast<std::size_t>(t * k + i - 1)]);
      }
    }
  }
}

TEST_P(V32Ops, AttentionOverRowsWhoseFirstEntriesAreTheValue) {
  const RowShape shape{RowFormat::fp8_f32, 160, 32};
  const std::int64_t heads = 5, n_rows = 300, k = 100;
  const Rows rows(shape, n_rows, 4);
  const std::vector<std::int64_t> visible = {7, n_rows};
  std::vector<std::int32_t> selected(static_cast<std::size_t>(2 * k), -1);
  for (std::int32_t i = 0; i < 7; ++i) selected[static_cast<std::size_t>(i)] = i;
  for (std::int32_t i = 0; i < k; ++i) selected[static_cast<std::size_t>(k + i)] = 3 * i;
  const std::vector<float> q = normal(2 * heads * shape.dim, 5);
  const AttentionSegment segments[] = {{0, 1, 6, nullptr, rows.paged()},
                                       {1, 1, n_rows - 1, nullptr, rows.paged()}};
  for (const bool bf16 : {false, true}) {
    std::vector<float> ours(static_cast<std::size_t>(2 * heads * 128)), theirs(ours.size());
    SparseAttentionParams p;
    p.n_tokens = 2;
    p.heads = heads;
    p.row = shape;
    p.q = q.data();
    p.segments = segments;
    p.visible = visible;
    p.k = k;
    p.selected = selected.data();
    p.bf16 = bf16;
    p.value_dim = 128;
    p.scale = 0.1F;
    p.out = ours.data();
    cpu_->run(p);
    p.out = theirs.data();
    reference_->run(p);
    for (std::size_t i = 0; i < ours.size(); ++i) ASSERT_NEAR(ours[i], theirs[i], bf16 ? 2e-2 : 2e-5) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, V32Ops,
                         testing::Values("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2",
                                         "neon_dotprod", "neon", "scalar"));

TEST(V32Reference, OnlyTheBestGroupsAreChosenFrom) {
  ThreadPool pool(1);
  // Sigmoids of the logits; the largest one is alone in its group, whose two best add up to less.
  const std::vector<float> logits = {4, -4, 1, 1, 0.9F, 1.2F}, bias(6, 0.0F);
  std::vector<float> scores(6), weights(2);
  std::vector<std::int32_t> indices(2);
  GateParams p{
      1, 6, 2, logits.data(), bias.data(), nullptr, {}, 2, scores.data(), indices.data(), weights.data()};
  p.sigmoid = true;
  p.n_group = 3;
  p.topk_group = 1;
  ref::gate(p, pool);
  EXPECT_EQ(indices, (std::vector<std::int32_t>{5, 4}));
  EXPECT_NEAR(scores[0], 1 / (1 + std::exp(-4.0)), 1e-6);
  EXPECT_NEAR(weights[0] + weights[1], 2, 1e-6);
  p.topk_group = 3;
  ref::gate(p, pool);
  EXPECT_EQ(indices, (std::vector<std::int32_t>{0, 5}));
}

TEST(V32Reference, LayerNormAndTheHalvesOfRope) {
  ThreadPool pool(1);
  std::vector<float> x = {1, 2, 3, 6}, out(4);
  const std::vector<float> weight = {1, 1, 1, 2}, bias = {0, 0, 0, 0.5F};
  ref::layer_norm({1, 4, x.data(), weight.data(), bias.data(), 0, out.data()}, pool);
  const double deviation = std::sqrt(3.5);
  EXPECT_NEAR(out[0], -2 / deviation, 1e-6);
  EXPECT_NEAR(out[3], 2 * 3 / deviation + 0.5, 1e-6);
  // A quarter turn takes (1, 3) and (2, 6) to (-3, 1) and (-6, 2); the entries behind stay.
  std::vector<float> y = {1, 2, 3, 6, 9};
  const float cos[] = {0, 0}, sin[] = {1, 1};
  ref::rope({1, 1, 5, 4, cos, sin, false, y.data(), RopeParams::Pairs::first_halves}, pool);
  EXPECT_EQ(y, (std::vector<float>{-3, -6, 1, 2, 9}));
}

}  // namespace
}  // namespace hadal
