// Muon and AdamW against their formulas, and the rule of every parameter.
#include "train/optimizer.h"

#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include <gtest/gtest.h>

#include "base/rng.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

std::vector<float> drawn(std::size_t n, std::uint64_t stream) {
  const Philox random(1, stream);
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<float>(random.uniform(i) - 0.5);
  return values;
}

TEST(AdamW, EqualsTheFormula) {
  constexpr std::size_t kN = 50;
  std::vector<float> w = drawn(kN, 1), m(kN), v(kN);
  std::vector<double> want(w.begin(), w.end()), first(kN), second(kN);
  ThreadPool pool(2);
  const AdamwOptions options;
  for (std::int64_t t = 1; t <= 5; ++t) {
    const std::vector<float> g = drawn(kN, 10 + static_cast<std::uint64_t>(t));
    const AdamwVector vector{w.data(), m.data(), v.data(), g.data(), kN, t != 3};
    adamw_step({&vector, 1}, options, t, 0.01F, 0.5F, pool);
    for (std::size_t i = 0; i < kN; ++i) {
      const double gradient = 0.5 * static_cast<double>(g[i]);
      first[i] = 0.9 * first[i] + 0.1 * gradient;
      second[i] = 0.95 * second[i] + 0.05 * gradient * gradient;
      const double unbiased = first[i] / (1 - std::pow(0.9, t)), size = second[i] / (1 - std::pow(0.95, t));
      want[i] = want[i] * (t != 3 ? 1 - 0.01 * 0.1 : 1) - 0.01 * unbiased / (std::sqrt(size) + 1e-20);
    }
  }
  for (std::size_t i = 0; i < kN; ++i) EXPECT_NEAR(w[i], want[i], 1e-6);
}

TEST(Muon, EqualsTheFormula) {
  constexpr std::int64_t kRows = 6, kColumns = 10;
  constexpr std::size_t kN = kRows * kColumns;
  for (const bool tall : {false, true}) {
    std::vector<float> w = drawn(kN, 20), m(kN);
    std::vector<double> want(w.begin(), w.end()), momentum(kN);
    ThreadPool pool(2);
    MuonOptions options;
    options.precision = Precision::f32;
    Muon muon(options, pool);
    const std::int64_t rows = tall ? kColumns : kRows, columns = tall ? kRows : kColumns;
    for (std::uint64_t t = 1; t <= 3; ++t) {
      const std::vector<float> g = drawn(kN, 20 + t);
      const MuonMatrix matrix{w.data(), m.data(), g.data(), rows, columns};
      muon.step({&matrix, 1}, 0.02F);
      // Algorithm 1 in double, Newton-Schulz written out on the matrix as it is.
      std::vector<double> y(kN);
      double norm = 0;
      for (std::size_t i = 0; i < kN; ++i) {
        momentum[i] = 0.95 * momentum[i] + static_cast<double>(g[i]);
        y[i] = 0.95 * momentum[i] + static_cast<double>(g[i]);
        norm += y[i] * y[i];
      }
      for (double& value : y) value /= std::sqrt(norm);
      const auto multiply = [](const std::vector<double>& a, const std::vector<double>& b, std::int64_t n,
                               std::int64_t k, std::int64_t q, bool transposed) {
        std::vector<double> c(static_cast<std::size_t>(n * q));
        for (std::int64_t i = 0; i < n; ++i)
          for (std::int64_t j = 0; j < q; ++j)
            for (std::int64_t l = 0; l < k; ++l)
              c[static_cast<std::size_t>(i * q + j)] +=
                  a[static_cast<std::size_t>(i * k + l)] *
                  b[static_cast<std::size_t>(transposed ? j * k + l : l * q + j)];
        return c;
      };
      for (int step = 0; step < 10; ++step) {
        const double a = step < 8 ? 3.4445 : 2, b = step < 8 ? -4.7750 : -1.5, c = step < 8 ? 2.0315 : 0.5;
        const auto gram = multiply(y, y, rows, columns, rows, true);
        const auto once = multiply(gram, y, rows, rows, columns, false),
                   twice = multiply(gram, once, rows, rows, columns, false);
        for (std::size_t i = 0; i < kN; ++i) y[i] = a * y[i] + b * once[i] + c * twice[i];
      }
      for (std::size_t i = 0; i < kN; ++i)
        want[i] = want[i] * (1 - 0.02 * 0.1) - 0.02 * y[i] * std::sqrt(10.0) * 0.18;
    }
    for (std::size_t i = 0; i < kN; ++i) EXPECT_NEAR(w[i], want[i], 2e-6);
  }
}

TEST(Muon, ManyMatricesOnAnyNumberOfThreads) {
  const auto run = [](int threads) {
    ThreadPool pool(threads);
    Muon muon({}, pool);
    std::vector<std::vector<float>> weights, momenta, gradients;
    std::vector<MuonMatrix> matrices;
    const std::pair<std::int64_t, std::int64_t> shapes[] = {{96, 300}, {8, 8},   {40, 20},
                                                            {1, 33},   {64, 64}, {24, 96}};
    for (const auto& [rows, columns] : shapes) {
      const auto n = static_cast<std::size_t>(rows * columns);
      weights.push_back(drawn(n, n));
      momenta.emplace_back(n);
      gradients.push_back(drawn(n, n + 1));
      matrices.push_back(
          {weights.back().data(), momenta.back().data(), gradients.back().data(), rows, columns});
    }
    muon.step(matrices, 0.02F, 0.5F);
    muon.step(matrices, 0.02F);
    return std::pair(weights, momenta);
  };
  EXPECT_EQ(run(1), run(2));
}

TEST(Optimizer, RuleOfEveryParameter) {
  const Config config = *parse_config(test::tiny_model());
  const ParameterSet set(config);
  std::map<std::string, UpdateRule> rules;
  for (const Parameter& p : set.parameters()) rules[p.info.name] = update_rule(p.info.role);
  for (const char* name :
       {"layers.1.attn.wq_a.weight", "layers.1.attn.wo_a.weight", "layers.0.ffn.experts.3.w2.weight",
        "layers.0.ffn.shared_experts.w1.weight", "layers.2.ffn.gate.weight", "layers.0.hc_attn_fn",
        "layers.1.attn.indexer.weights_proj.weight", "mtp.0.e_proj.weight", "hc_head_fn",
        "layers.2.attn.compressor.wgate.weight"})
    EXPECT_EQ(rules.at(name), UpdateRule::muon) << name;
  for (const char* name : {"embed.weight", "head.weight", "norm.weight", "layers.0.attn.q_norm.weight",
                           "layers.0.hc_attn_base", "layers.0.hc_ffn_scale", "hc_head_base"})
    EXPECT_EQ(rules.at(name), UpdateRule::adamw) << name;
  for (const char* name : {"layers.0.attn.attn_sink", "layers.1.attn.compressor.ape"})
    EXPECT_EQ(rules.at(name), UpdateRule::adamw_no_decay) << name;
  for (const char* name : {"layers.1.ffn.gate.bias", "layers.0.ffn.gate.tid2eid"})
    EXPECT_EQ(rules.at(name), UpdateRule::none) << name;
}

TEST(Optimizer, AStageMovesOnlyWhatItTrains) {
  const Config config = *parse_config(test::tiny_model());
  ThreadPool pool(2);
  for (const auto trained : {Trained::indexer, Trained::all_but_indexer, Trained::all}) {
    ParameterSet weights(config), gradients(config);
    for (float& value : weights.values()) value = 1;
    std::uint64_t i = 0;
    for (float& value : gradients.values()) value = static_cast<float>(Philox(2, 2).uniform(i++) - 0.5);
    Optimizer optimizer(config, {}, pool);
    optimizer.step(weights, gradients, trained, 0.01, 1);
    for (const Parameter& p : weights.parameters()) {
      if (update_rule(p.info.role) == UpdateRule::none) continue;
      const bool moves = trained == Trained::all || (trained == Trained::indexer) == is_indexer(p.info);
      EXPECT_EQ(weights[p][0] != 1, moves) << p.info.name;
    }
  }
}

TEST(Optimizer, ClippingScalesTheGradient) {
  const Config config = *parse_config(test::tiny_model());
  ThreadPool pool(2);
  ParameterSet gradients(config);
  std::int64_t size = 0;
  for (const Parameter& p : gradients.parameters()) {
    const auto values = gradients[p];
    std::fill(values.begin(), values.end(), 0.5F);
    size += p.size;
  }
  const std::vector<double> squares = gradient_squares(gradients, pool);
  const double norm = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
  EXPECT_NEAR(norm, 0.5 * std::sqrt(static_cast<double>(size)), 1e-6 * norm);
  EXPECT_EQ(first_not_finite(gradients, pool), nullptr);
  const Parameter* bad = gradients.find("layers.2.ffn.experts.1.w3.weight");
  gradients[*bad].back() = HUGE_VALF;
  EXPECT_EQ(first_not_finite(gradients, pool)->info.name, bad->info.name);
}

}  // namespace
}  // namespace hadal
