#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include <gtest/gtest.h>

#include "base/rng.h"

namespace hadal {
namespace {

SamplingOptions with_temperature(double temperature) {
  SamplingOptions options;
  options.temperature = temperature;
  return options;
}

std::map<std::int32_t, double> frequencies(const std::vector<float>& logits, const SamplingOptions& options,
                                           std::uint64_t draws = 20000) {
  Sampler sampler;
  std::map<std::int32_t, double> counts;
  for (std::uint64_t i = 0; i < draws; ++i) {
    counts[sampler.sample(logits, options, i).token] += 1.0 / static_cast<double>(draws);
  }
  return counts;
}

TEST(Sampler, GreedyTakesTheBestAndTheLowestIdAmongEquals) {
  Sampler sampler;
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3}, with_temperature(0), 0).token, 1);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(sampler.sample(std::vector<float>{nan, -inf, -5, -6}, with_temperature(0), 0).token, 2);
}

TEST(Sampler, DrawsFollowTheDistribution) {
  const std::vector<float> logits = {std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)};
  // 20000 draws: three standard deviations are at most 0.011.
  const auto plain = frequencies(logits, with_temperature(1));
  EXPECT_NEAR(plain.at(0), 0.5, 0.011);
  EXPECT_NEAR(plain.at(1), 0.3, 0.011);
  EXPECT_NEAR(plain.at(2), 0.15, 0.011);
  EXPECT_NEAR(plain.at(3), 0.05, 0.011);
  const auto hot = frequencies(logits, with_temperature(2));  // square roots, renormalised
  const double total = std::sqrt(0.5) + std::sqrt(0.3) + std::sqrt(0.15) + std::sqrt(0.05);
  EXPECT_NEAR(hot.at(3), std::sqrt(0.05) / total, 0.011);
}

TEST(Sampler, TopKTopPAndMinPCut) {
  const std::vector<float> logits = {std::log(0.15F), std::log(0.5F), std::log(0.05F), std::log(0.3F)};
  SamplingOptions top_k = with_temperature(1);
  top_k.top_k = 2;
  const auto two = frequencies(logits, top_k);
  EXPECT_EQ(two.size(), 2U);
  EXPECT_NEAR(two.at(1), 0.5 / 0.8, 0.011);

  SamplingOptions top_p = with_temperature(1);
  top_p.top_p = 0.79;  // 0.5 is not enough, 0.8 is
  EXPECT_EQ(frequencies(logits, top_p).size(), 2U);
  top_p.top_p = 0.81;
  EXPECT_EQ(frequencies(logits, top_p).size(), 3U);
  top_p.top_p = 1e-9;  // the best one always stays
  EXPECT_EQ(frequencies(logits, top_p).size(), 1U);

  SamplingOptions min_p = with_temperature(1);
  min_p.min_p = 0.2;  // of 0.5: 0.1 and more
  EXPECT_EQ(frequencies(logits, min_p).size(), 3U);
  min_p.min_p = 1;
  EXPECT_EQ(frequencies(logits, min_p).size(), 1U);

  SamplingOptions both = with_temperature(1);
  both.top_k = 3;
  both.top_p = 0.85;  // of the 0.95 that top-k leaves: 0.8075, which takes three
  EXPECT_EQ(frequencies(logits, both).size(), 3U);
}

TEST(Sampler, LargeVocabularyTopPMatchesItsDefinition) {
  std::vector<float> logits(5000);
  const Philox random(1, 1);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(3 * random.uniform(i));
  SamplingOptions options = with_temperature(0.7);
  options.top_p = 0.6;
  // The set by sorting everything.
  std::vector<std::pair<double, std::int32_t>> sorted;
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    sorted.emplace_back(-std::exp(logits[i] / 0.7), static_cast<std::int32_t>(i));
    total -= sorted.back().first;
  }
  std::sort(sorted.begin(), sorted.end());
  std::map<std::int32_t, bool> allowed;
  double mass = 0;
  for (const auto& [weight, id] : sorted) {
    if (mass >= 0.6 * total) break;
    mass -= weight;
    allowed[id] = true;
  }
  EXPECT_GT(allowed.size(), 256U) << "the test should grow the sorted front";
  for (const auto& [id, share] : frequencies(logits, options, 300)) EXPECT_TRUE(allowed.contains(id)) << id;
}

TEST(Sampler, LargeVocabularyTopKMatchesItsDefinition) {
  std::vector<float> logits(5003);
  const Philox random(1, 3);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = std::floor(static_cast<float>(9 * random.uniform(i)));
  std::vector<std::int32_t> order(logits.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  SamplingOptions options = with_temperature(50);
  options.top_k = 700;  // ends among equals, of which the lowest ids stay
  const std::set<std::int32_t> allowed(order.begin(), order.begin() + 700);
  const auto drawn = frequencies(logits, options, 20000);
  for (const auto& [id, share] : drawn) EXPECT_TRUE(allowed.contains(id)) << id;
  EXPECT_GT(drawn.size(), 690U);
  Sampler sampler;
  const auto top = sampler.sample(logits, options, 0, 600).top;
  for (std::size_t i = 0; i < top.size(); ++i) EXPECT_EQ(top[i].token, order[i]);
}

TEST(Sampler, TheDrawIsAFunctionOfSeedAndPosition) {
  std::vector<float> logits(1000);
  const Philox random(2, 2);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(random.uniform(i));
  Sampler one, two;
  SamplingOptions options = with_temperature(1);
  int differ = 0;
  for (std::uint64_t position = 0; position < 50; ++position) {
    options.seed = 7;
    const auto first = one.sample(logits, options, position).token;
    EXPECT_EQ(two.sample(logits, options, position).token, first);
    options.seed = 8;
    differ += static_cast<int>(one.sample(logits, options, position).token != first);
  }
  EXPECT_GT(differ, 40);
}

TEST(Sampler, LogprobsAreOfTheModelsDistribution) {
  const std::vector<float> logits = {std::log(0.5F), std::log(0.3F), std::log(0.2F)};
  Sampler sampler;
  SamplingOptions options = with_temperature(0.1);
  options.top_k = 1;
  const Sample sample = sampler.sample(logits, options, 3, 2);
  EXPECT_EQ(sample.token, 0);
  EXPECT_NEAR(sample.logprob, std::log(0.5), 1e-6);
  ASSERT_EQ(sample.top.size(), 2U);
  EXPECT_EQ(sample.top[1].token, 1);
  EXPECT_NEAR(sample.top[1].logprob, std::log(0.3), 1e-6);
}

TEST(SamplingOptions, RefusesWhatMakesNoSense) {
  SamplingOptions options;
  options.temperature = -1;
  EXPECT_FALSE(options.validate().has_value());
  options = {};
  options.top_p = 0;
  EXPECT_FALSE(options.validate().has_value());
  options = {};
  options.min_p = std::nan("");
  const Status status = options.validate();
  ASSERT_FALSE(status.has_value());
  EXPECT_NE(status.error().message().find("min_p"), std::string::npos);
  EXPECT_TRUE(SamplingOptions{}.validate().has_value());
}

}  // namespace
}  // namespace hadal
