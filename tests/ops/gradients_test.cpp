// The gradient of every op against central differences of its forward, on ragged small shapes, for the plain
// reference and for the fast path; and the same bits on any number of threads.
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "ops/backend.h"
#include "ops/training_backend.h"

namespace hadal {
namespace {

using Floats = std::vector<float>;

Floats normal(std::int64_t n, unsigned seed, float scale = 1, float mean = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(mean, scale);
  Floats out(static_cast<std::size_t>(n));
  for (float& x : out) x = distribution(generator);
  return out;
}

double dot(const Floats& a, const Floats& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

class Gradients : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string_view name = GetParam();
    forward_ = *make_backend("ref", "", pool_);
    auto made = make_training_backend(name == "ref" ? "ref" : "cpu", name == "ref" ? "" : name, pool_);
    if (!made) GTEST_SKIP() << made.error().message();
    backward_ = std::move(*made);
  }

  // d loss / d x by differences of fourth order, against `analytic`: ||difference|| <= 1e-3 ||gradient||.
  // `loss` runs the forward on x as it is. The step is a compromise: the forward rounds to float32.
  static void expect_gradient(const char* what, Floats& x, const Floats& analytic,
                              const std::function<double()>& loss, float step = 0.02F) {
    ASSERT_EQ(x.size(), analytic.size()) << what;
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float before = x[i];
      const auto at = [&](float offset) {
        x[i] = before + offset;
        return loss();
      };
      const double near = at(step) - at(-step), far = at(2 * step) - at(-2 * step);
      x[i] = before;
      const double numeric = (8 * near - far) / (12 * double{step});
      error += std::pow(numeric - double{analytic[i]}, 2);
      norm += std::pow(numeric, 2);
    }
    EXPECT_GT(norm, 0) << what;
    EXPECT_LT(std::sqrt(error), 1e-3 * std::sqrt(norm)) << what;
  }

  ThreadPool pool_{1};
  std::unique_ptr<Backend> forward_;
  std::unique_ptr<TrainingBackend> backward_;
};

TEST_P(Gradients, Embed) {
  const std::vector<std::int32_t> tokens = {3, 0, 3, 1};
  const Floats d_streams = normal(4 * 2 * 21, 1);
  Floats d_embed = normal(5 * 21, 2), expected = d_embed;
  backward_->run(EmbedBackwardParams{tokens, 2, 21, d_streams.data(), d_embed.data()});
  for (std::size_t i = 0; i < d_streams.size(); ++i)
    expected[static_cast<std::size_t>(tokens[i / 42] * 21) + i % 21] += d_streams[i];
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(d_embed[i], expected[i], 1e-6);
}

TEST_P(Gradients, RmsNorm) {
  for (const std::int64_t dim : {5, 48}) {
    for (const bool weighted : {true, false}) {
      constexpr std::int64_t kRows = 7;
      Floats x = normal(kRows * dim, 1), weight = normal(dim, 2, 0.3F, 1), out(x.size());
      const Floats d_out = normal(kRows * dim, 3);
      const auto loss = [&] {
        forward_->run(
            RmsNormParams{kRows, dim, x.data(), weighted ? weight.data() : nullptr, 0.1F, out.data()});
        return dot(out, d_out);
      };
      Floats d_x(x.size()), d_weight(weight.size());
      backward_->run(RmsNormBackwardParams{kRows, dim, x.data(), weighted ? weight.data() : nullptr, 0.1F,
                                           d_out.data(), d_x.data(), weighted ? d_weight.data() : nullptr});
      expect_gradient("x", x, d_x, loss);
      if (weighted) expect_gradient("weight", weight, d_weight, loss);
      Floats in_place = d_out;
      backward_->run(RmsNormBackwardParams{kRows, dim, x.data(), weighted ? weight.data() : nullptr, 0.1F,
                                           in_place.data(), in_place.data(), nullptr});
      EXPECT_EQ(in_place, d_x);
    }
  }
}

// The two maps whose gradient is another op of inference.
TEST_P(Gradients, RopeAndHadamard) {
  constexpr std::int64_t kTokens = 3, kHeads = 2, kDim = 32, kRope = 6;
  const Floats angles = normal(kTokens * kRope / 2, 1), d_out = normal(kTokens * kHeads * kDim, 2);
  Floats cos(angles.size()), sin(angles.size()), x = normal(kTokens * kHeads * kDim, 3);
  for (std::size_t i = 0; i < angles.size(); ++i) {
    cos[i] = std::cos(angles[i]);
    sin[i] = std::sin(angles[i]);
  }
  const auto rope = [&](Floats y, bool inverse) {
    forward_->run(RopeParams{kTokens, kHeads, kDim, kRope, cos.data(), sin.data(), inverse, y.data()});
    return y;
  };
  expect_gradient("rope", x, rope(d_out, true), [&] { return dot(rope(x, false), d_out); });
  const auto hadamard = [&](Floats y) {
    forward_->run(HadamardParams{kTokens * kHeads, kDim, y.data()});
    return y;
  };
  expect_gradient("hadamard", x, hadamard(d_out), [&] { return dot(hadamard(x), d_out); });
}

TEST_P(Gradients, Compress) {
  struct Shape {
    std::int64_t tokens, ratio, dim;
    bool overlap;
  };
  for (const Shape& s :
       {Shape{15, 4, 3, true}, Shape{9, 4, 32, true}, Shape{18, 8, 5, false}, Shape{3, 4, 2, true}}) {
    const std::int64_t blocks = s.tokens / s.ratio, wide = (s.overlap ? 2 : 1) * s.dim;
    Floats values = normal(s.tokens * wide, 1), gates = normal(s.tokens * wide, 2);
    Floats out(static_cast<std::size_t>(blocks * s.dim)), d_values(values.size(), 9),
        d_gates(gates.size(), 9);
    const Floats d_out = normal(blocks * s.dim, 3);
    const auto loss = [&] {
      forward_->run(
          CompressParams{blocks, s.ratio, s.dim, s.overlap, false, values.data(), gates.data(), out.data()});
      return dot(out, d_out);
    };
    backward_->run(CompressBackwardParams{s.tokens, blocks, s.ratio, s.dim, s.overlap, values.data(),
                                          gates.data(), d_out.data(), d_values.data(), d_gates.data()});
    if (blocks == 0) {
      EXPECT_EQ(d_values, Floats(values.size()));
      EXPECT_EQ(d_gates, Floats(gates.size()));
      continue;
    }
    expect_gradient("values", values, d_values, loss);
    expect_gradient("gates", gates, d_gates, loss);
  }
}

// Whole sequences with sliding window only, compressed rows, and selected ones.
struct AttentionCase {
  AttentionCase(std::int64_t sequences, std::int64_t length, std::int64_t heads, std::int64_t dim,
                std::int64_t window, std::int64_t ratio, std::int64_t k)
      : shape{sequences, length, heads, dim, window, ratio, ratio == 0 ? 0 : length / ratio, k} {
    const std::int64_t n = sequences * length;
    q = normal(n * heads * dim, 1);
    kv = normal(n * dim, 2);
    rows = normal(sequences * shape.n_rows * dim, 3);
    sink = normal(heads, 4);
    if (k == 0) return;
    for (std::int64_t t = 0; t < n; ++t) {  // the last k visible, ascending
      const std::int64_t visible = shape.visible(t % length), first = std::max<std::int64_t>(0, visible - k);
      for (std::int64_t i = 0; i < k; ++i)
        selected.push_back(first + i < visible ? static_cast<std::int32_t>(first + i) : -1);
    }
  }
  const std::int32_t* chosen() const { return selected.empty() ? nullptr : selected.data(); }
  CausalAttentionShape shape;
  Floats q, kv, rows, sink;
  std::vector<std::int32_t> selected;
};

std::vector<AttentionCase> attention_cases() {
  return {{2, 7, 2, 5, 3, 0, 0}, {2, 13, 3, 6, 4, 4, 0}, {1, 17, 2, 32, 5, 4, 2}, {1, 18, 1, 16, 20, 8, 0}};
}

TEST_P(Gradients, CausalAttention) {
  for (AttentionCase& c : attention_cases()) {
    Floats out(c.q.size());
    const Floats d_out = normal(static_cast<std::int64_t>(out.size()), 5);
    const auto forward = [&] {
      backward_->run(CausalAttentionParams{c.shape, c.q.data(), c.kv.data(), c.rows.data(), c.chosen(),
                                           c.sink.data(), out.data(), nullptr});
      return dot(out, d_out);
    };
    forward();
    Floats d_q(c.q.size()), d_kv(c.kv.size()), d_rows(c.rows.size()), d_sink(c.sink.size());
    backward_->run(CausalAttentionBackwardParams{c.shape, c.q.data(), c.kv.data(), c.rows.data(), c.chosen(),
                                                 c.sink.data(), out.data(), d_out.data(), d_q.data(),
                                                 d_kv.data(), d_rows.data(), d_sink.data()});
    expect_gradient("q", c.q, d_q, forward);
    expect_gradient("kv", c.kv, d_kv, forward);
    if (!c.rows.empty()) expect_gradient("rows", c.rows, d_rows, forward);
    expect_gradient("sink", c.sink, d_sink, forward);
  }
}

// The fast path and the reference on shapes that fill its blocks.
TEST_P(Gradients, CausalAttentionIsTheReference) {
  const auto reference = *make_training_backend("ref", "", pool_);
  for (AttentionCase c : {AttentionCase{2, 150, 2, 32, 40, 4, 0}, AttentionCase{1, 70, 3, 64, 16, 4, 6},
                          AttentionCase{1, 45, 4, 48, 100, 8, 0}, AttentionCase{2, 33, 1, 32, 7, 0, 0}}) {
    const Floats d_out = normal(static_cast<std::int64_t>(c.q.size()), 5);
    std::vector<Floats> results[2];
    for (int which = 0; which < 2; ++which) {
      TrainingBackend& backend = which == 0 ? *reference : *backward_;
      Floats out(c.q.size()),
          mass(static_cast<std::size_t>(c.shape.sequences * c.shape.length * c.shape.n_rows));
      backend.run(CausalAttentionParams{c.shape, c.q.data(), c.kv.data(), c.rows.data(), c.chosen(),
                                        c.sink.data(), out.data(), mass.data()});
      Floats d_q(c.q.size()), d_kv(c.kv.size()), d_rows(c.rows.size()), d_sink(c.sink.size());
      backend.run(CausalAttentionBackwardParams{c.shape, c.q.data(), c.kv.data(), c.rows.data(), c.chosen(),
                                                c.sink.data(), out.data(), d_out.data(), d_q.data(),
                                                d_kv.data(), d_rows.data(), d_sink.data()});
      results[which] = {out, mass, d_q, d_kv, d_rows, d_sink};
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) {
      const Floats &expected = results[0][i], &actual = results[1][i];
      Floats difference = actual;
      for (std::size_t j = 0; j < difference.size(); ++j) difference[j] -= expected[j];
      EXPECT_LE(std::sqrt(dot(difference, difference)), 3e-6 * std::sqrt(dot(expected, expected)))
          << "result " << i;
    }
  }
}

TEST_P(Gradients, IndexLoss) {
  for (const AttentionCase& c : attention_cases()) {
    const CausalAttentionShape& s = c.shape;
    if (s.n_rows == 0) continue;
    const std::int64_t n = s.sequences * s.length;
    Floats mass = normal(n * s.n_rows, 1), scores = normal(n * s.n_rows, 2),
           losses(static_cast<std::size_t>(n));
    for (float& x : mass) x = std::fabs(x);
    Floats d_scores(scores.size(), 9);
    const auto loss = [&] {
      backward_->run(IndexLossParams{s, c.chosen(), mass.data(), scores.data(), 1, losses.data(), nullptr});
      return 0.5 * std::accumulate(losses.begin(), losses.end(), 0.0);
    };
    EXPECT_GT(loss(), 0);
    backward_->run(
        IndexLossParams{s, c.chosen(), mass.data(), scores.data(), 0.5F, losses.data(), d_scores.data()});
    expect_gradient("scores", scores, d_scores, loss);
  }
}

// A training forward's scores are those that inference selects by.
TEST_P(Gradients, IndexScoresAreTheIndexers) {
  const CausalAttentionShape s{1, 90, 3, 64, 8, 4, 22, 0};
  const Floats q = normal(s.length * s.heads * s.dim, 1), weights = normal(s.length * s.heads, 2);
  const Floats rows = normal(s.n_rows * s.dim, 3);
  Floats scores(static_cast<std::size_t>(s.length * s.n_rows)), expected(scores.size());
  std::vector<std::int64_t> visible;
  for (std::int64_t t = 0; t < s.length; ++t) visible.push_back(s.visible(t));
  const auto* page = reinterpret_cast<const std::byte*>(rows.data());
  forward_->run(IndexScoresParams{s.length, s.heads, s.dim, q.data(), weights.data(),
                                  PagedRows{&page, 0, s.n_rows, {RowFormat::f32, s.dim, 0}}, visible,
                                  s.n_rows, expected.data()});
  backward_->run(CausalIndexScoresParams{s, q.data(), weights.data(), rows.data(), scores.data()});
  for (std::size_t i = 0; i < scores.size(); ++i) ASSERT_NEAR(scores[i], expected[i], 2e-5) << i;
}

TEST_P(Gradients, IndexScores) {
  for (const AttentionCase& c : attention_cases()) {
    CausalAttentionShape s = c.shape;
    if (s.n_rows == 0) continue;
    s.dim = 32;
    const std::int64_t n = s.sequences * s.length;
    Floats q = normal(n * s.heads * s.dim, 1), weights = normal(n * s.heads, 2);
    Floats rows = normal(s.sequences * s.n_rows * s.dim, 3);
    Floats scores(static_cast<std::size_t>(n * s.n_rows)), d_scores = normal(n * s.n_rows, 4);
    const auto loss = [&] {
      backward_->run(CausalIndexScoresParams{s, q.data(), weights.data(), rows.data(), scores.data()});
      return dot(scores, d_scores);
    };
    for (std::int64_t t = 0; t < n; ++t) {
      for (std::int64_t b = s.visible(t % s.length); b < s.n_rows; ++b)
        d_scores[static_cast<std::size_t>(t * s.n_rows + b)] = 0;
    }
    Floats d_q(q.size()), d_weights(weights.size()), d_rows(rows.size());
    backward_->run(CausalIndexScoresBackwardParams{s, q.data(), weights.data(), rows.data(), d_scores.data(),
                                                   d_q.data(), d_weights.data(), d_rows.data()});
    // The score is piecewise linear: a small step seldom crosses a corner.
    expect_gradient("q", q, d_q, loss, 1e-3F);
    expect_gradient("weights", weights, d_weights, loss);
    expect_gradient("rows", rows, d_rows, loss, 1e-3F);
  }
}

// mHC, on three and four streams. The mixes are an input of their own here: the way through fn is a matrix
// product outside.
TEST_P(Gradients, HyperConnections) {
  struct Shape {
    std::int64_t tokens, n, dim;
  };
  for (const Shape& shape : {Shape{3, 3, 5}, Shape{3, 4, 16}, Shape{2, 4, 48}}) {
    const std::int64_t t = shape.tokens, n = shape.n, d = shape.dim, mixes = (2 + n) * n;
    Floats streams = normal(t * n * d, 1), mix = normal(t * mixes, 2), scale = normal(3, 3, 0.2F, 1);
    Floats base = normal(mixes, 4, 0.5F), pre(static_cast<std::size_t>(t * n)), post(pre.size());
    Floats comb(static_cast<std::size_t>(t * n * n)), out(static_cast<std::size_t>(t * d));
    const Floats d_out = normal(t * d, 5), d_post = normal(t * n, 6), d_comb = normal(t * n * n, 7);
    constexpr std::int64_t kIterations = 4;  // not yet converged, so that each matters
    const auto pre_loss = [&] {
      forward_->run(HcPreParams{t, n, d, streams.data(), mix.data(), scale.data(), base.data(), kIterations,
                                0.1F, 1e-3F, pre.data(), post.data(), comb.data(), out.data()});
      return dot(out, d_out) + dot(post, d_post) + dot(comb, d_comb);
    };
    Floats d_streams(streams.size()), d_mix(mix.size()), d_scale(3), d_base(base.size());
    backward_->run(HcPreBackwardParams{t, n, d, streams.data(), mix.data(), scale.data(), base.data(),
                                       kIterations, 0.1F, 1e-3F, d_out.data(), d_post.data(), d_comb.data(),
                                       d_streams.data(), d_mix.data(), d_scale.data(), d_base.data()});
    expect_gradient("pre: streams", streams, d_streams, pre_loss);
    expect_gradient("pre: mix", mix, d_mix, pre_loss);
    expect_gradient("pre: scale", scale, d_scale, pre_loss);
    expect_gradient("pre: base", base, d_base, pre_loss);

    pre_loss();
    Floats y = normal(t * d, 8), after(streams.size());
    const Floats d_after = normal(t * n * d, 9);
    const auto post_loss = [&] {
      after = streams;
      forward_->run(HcPostParams{t, n, d, y.data(), post.data(), comb.data(), after.data()});
      return dot(after, d_after);
    };
    Floats d_before = d_after, d_y(y.size()), d_p(post.size()), d_c(comb.size());
    backward_->run(HcPostBackwardParams{t, n, d, y.data(), post.data(), comb.data(), streams.data(),
                                        d_before.data(), d_y.data(), d_p.data(), d_c.data()});
    expect_gradient("post: streams", streams, d_before, post_loss);
    expect_gradient("post: y", y, d_y, post_loss);
    expect_gradient("post: post", post, d_p, post_loss);
    expect_gradient("post: comb", comb, d_c, post_loss);

    Floats head_mix = normal(t * n, 10), head_scale = {1.2F}, head_base = normal(n, 11);
    const auto head_loss = [&] {
      forward_->run(HcHeadParams{t, n, d, streams.data(), head_mix.data(), head_scale.data(),
                                 head_base.data(), 0.1F, 1e-3F, out.data()});
      return dot(out, d_out);
    };
    Floats d_head_mix(head_mix.size()), d_head_scale(1), d_head_base(head_base.size());
    backward_->run(HcHeadBackwardParams{t, n, d, streams.data(), head_mix.data(), head_scale.data(),
                                        head_base.data(), 0.1F, 1e-3F, d_out.data(), d_streams.data(),
                                        d_head_mix.data(), d_head_scale.data(), d_head_base.data()});
    expect_gradient("head: streams", streams, d_streams, head_loss);
    expect_gradient("head: mix", head_mix, d_head_mix, head_loss);
    expect_gradient("head: scale", head_scale, d_head_scale, head_loss);
    expect_gradient("head: base", head_base, d_head_base, head_loss);
  }
}

TEST_P(Gradients, Gate) {
  constexpr std::int64_t kTokens = 6, kExperts = 7, kChosen = 3, kLength = 3;
  Floats logits = normal(kTokens * kExperts, 1, 2), scores(logits.size());
  std::vector<std::int32_t> table = {0, 3, 6, 2, 1, 4, 5, 6, 0, 1, 2, 3, 6, 5, 4, 3, 1, 0}, tokens(kTokens);
  std::iota(tokens.begin(), tokens.end(), 0);
  std::vector<std::int32_t> indices(table.size());
  Floats weights(table.size());
  const Floats d_weights = normal(kTokens * kChosen, 2), d_shares = normal(kTokens / kLength * kExperts, 3);
  const auto loss = [&] {
    forward_->run(GateParams{kTokens, kExperts, kChosen, logits.data(), nullptr, table.data(), tokens, 1.5F,
                             scores.data(), indices.data(), weights.data()});
    double sum = dot(weights, d_weights);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const float* s = scores.data() + t * kExperts;
      const double all = std::accumulate(s, s + kExperts, 0.0);
      for (std::int64_t e = 0; e < kExperts; ++e)
        sum += double{d_shares[static_cast<std::size_t>(t / kLength * kExperts + e)]} * double{s[e]} / all;
    }
    return sum;
  };
  loss();
  Floats d_logits(logits.size());
  backward_->run(GateBackwardParams{kTokens, kExperts, kChosen, kLength, logits.data(), scores.data(),
                                    indices.data(), 1.5F, d_weights.data(), d_shares.data(),
                                    d_logits.data()});
  expect_gradient("logits", logits, d_logits, loss);
}

TEST_P(Gradients, Swiglu) {
  for (const std::int64_t inter : {5, 32, 50}) {
    constexpr std::int64_t kRows = 4;
    constexpr float kLimit = 1.0F;
    Floats gate = normal(kRows * inter, 1), up = normal(kRows * inter, 2), weights = normal(kRows, 3);
    for (Floats* x : {&gate, &up}) {  // away from the corners
      for (float& v : *x) v = std::fabs(std::fabs(v) - kLimit) < 0.1F ? 0.5F * v : v;
    }
    Floats out(gate.size());
    const Floats d_out = normal(kRows * inter, 4);
    const auto loss = [&] {
      backward_->run(SwigluParams{kRows, inter, gate.data(), up.data(), weights.data(), kLimit, out.data()});
      return dot(out, d_out);
    };
    Floats d_gate(gate.size()), d_up(up.size()), d_weights(weights.size());
    backward_->run(SwigluBackwardParams{kRows, inter, gate.data(), up.data(), weights.data(), kLimit,
                                        d_out.data(), d_gate.data(), d_up.data(), d_weights.data()});
    expect_gradient("gate", gate, d_gate, loss);
    expect_gradient("up", up, d_up, loss);
    expect_gradient("weights", weights, d_weights, loss);
  }
}

TEST_P(Gradients, CrossEntropy) {
  for (const std::int64_t vocab : {7, 40}) {
    constexpr std::int64_t kRows = 3;
    Floats logits = normal(kRows * vocab, 1, 2), losses(kRows);
    const Floats scales = {0.5F, 0, 2};
    const std::vector<std::int32_t> targets = {1, 0, 6};
    const auto loss = [&] {
      Floats copy = logits;
      backward_->run(CrossEntropyParams{kRows, vocab, targets.data(), nullptr, copy.data(), losses.data()});
      EXPECT_EQ(copy, logits);
      return dot(losses, scales);
    };
    Floats d_logits = logits;
    backward_->run(
        CrossEntropyParams{kRows, vocab, targets.data(), scales.data(), d_logits.data(), losses.data()});
    expect_gradient("logits", logits, d_logits, loss);
  }
}

#if defined(__aarch64__)
constexpr const char* kBackends[] = {"ref", "neon_dotprod", "neon", "scalar"};
#else
constexpr const char* kBackends[] = {"ref", "avx512bf16", "avx512", "avx2", "scalar"};
#endif
INSTANTIATE_TEST_SUITE_P(Backends, Gradients, testing::ValuesIn(kBackends),
                         [](const auto& backend) { return std::string(backend.param); });

}  // namespace
}  // namespace hadal
