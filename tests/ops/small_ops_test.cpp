// The ops between the matrices against the reference, for every instruction set that this machine has: those
// with sums to float32's accuracy, those without bit for bit; and the same bits for any threads and company.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "ops/backend.h"
#include "ops/ref/ref.h"

namespace hadal {
namespace {

std::vector<float> normal(std::int64_t n, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = distribution(generator);
  return out;
}

// Of every magnitude from 2^-40 to 2^12, with zeros of both signs.
std::vector<float> magnitudes(std::int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<float> out = normal(n, seed + 1);
  for (float& x : out) {
    x = std::ldexp(x, static_cast<int>(generator() % 53) - 40);
    if (generator() % 16 == 0) x = std::copysign(0.0F, x);
  }
  return out;
}

double relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    error += std::pow(double{actual[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(error / norm);
}
double worst_relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < actual.size(); ++i)
    worst =
        std::max(worst, std::fabs(double{actual[i]} - double{expected[i]}) / std::fabs(double{expected[i]}));
  return worst;
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class SmallOps : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = make_backend("cpu", GetParam(), pool_);
    if (!backend) GTEST_SKIP() << backend.error().message();
    cpu_ = std::move(*backend);
    threaded_ = std::move(*make_backend("cpu", GetParam(), three_));
    ref_ = std::move(*make_backend("ref", "", pool_));
  }
  ThreadPool pool_{1}, three_{3};
  std::unique_ptr<Backend> cpu_, threaded_, ref_;
};

TEST_P(SmallOps, RmsNorm) {
  for (const std::int64_t dim : {16, 48, 512, 4096, 40}) {  // 40: as the reference
    const std::int64_t rows = 67;
    const auto x = normal(rows * dim, 1), weight = normal(dim, 2);
    for (const float* w : {weight.data(), static_cast<const float*>(nullptr)}) {
      std::vector<float> expected(x.size()), actual(x.size()), in_place = x;
      ref_->run(RmsNormParams{rows, dim, x.data(), w, 1e-6F, expected.data()});
      cpu_->run(RmsNormParams{rows, dim, x.data(), w, 1e-6F, actual.data()});
      threaded_->run(RmsNormParams{rows, dim, in_place.data(), w, 1e-6F, in_place.data()});
      EXPECT_LT(relative_error(actual, expected), 1e-7) << dim;
      EXPECT_TRUE(same_bits(in_place, actual));
    }
  }
}

TEST_P(SmallOps, RopeIsTheDefinitionBitForBit) {
  for (const auto& shape : {std::array<std::int64_t, 3>{64, 512, 64}, {1, 96, 32}, {3, 24, 8}}) {
    const std::int64_t heads = shape[0], dim = shape[1], r = shape[2];
    const std::int64_t tokens = 19;
    const auto x = normal(tokens * heads * dim, 3), cos = normal(tokens * r / 2, 4),
               sin = normal(tokens * r / 2, 5);
    for (const bool inverse : {false, true}) {
      auto expected = x, actual = x, threaded = x;
      const auto params = [&](std::vector<float>& to) {
        return RopeParams{tokens, heads, dim, r, cos.data(), sin.data(), inverse, to.data()};
      };
      ref_->run(params(expected));
      cpu_->run(params(actual));
      threaded_->run(params(threaded));
      EXPECT_TRUE(same_bits(actual, expected)) << dim;
      EXPECT_TRUE(same_bits(threaded, expected)) << dim;
    }
  }
}

TEST_P(SmallOps, QuantisersAreTheDefinitionBitForBit) {
  struct Case {
    QuantiseParams::Format format;
    std::int64_t dim, quantised_dim;
  };
  for (const Case& c :
       {Case{QuantiseParams::Format::e4m3_64, 512, 448}, Case{QuantiseParams::Format::e4m3_128, 384, 384},
        Case{QuantiseParams::Format::e2m1_32, 128, 128}}) {
    const std::int64_t rows = 2001;
    auto x = magnitudes(rows * c.dim, 6);
    // Rows at the grid itself and between its points, where ties are; rows of one number; a row of zeros.
    for (std::int64_t r = 0; r < 800; ++r) {
      for (std::int64_t i = 0; i < c.dim; ++i) {
        float& to = x[static_cast<std::size_t>(r * c.dim + i)];
        if (r < 600)
          to = std::ldexp(static_cast<float>((i * 37 + r * 11) % 129 - 64), static_cast<int>(r % 40) - 20);
        else
          to = r < 799 ? std::ldexp(1 + 0x1p-23F * static_cast<float>(r - 600), static_cast<int>(r % 30) - 15)
                       : 0;
      }
    }
    auto expected = x, actual = x, threaded = x;
    const auto params = [&](std::vector<float>& to) {
      return QuantiseParams{c.format, rows, c.dim, c.quantised_dim, to.data()};
    };
    ref_->run(params(expected));
    cpu_->run(params(actual));
    threaded_->run(params(threaded));
    EXPECT_TRUE(same_bits(actual, expected)) << c.dim;
    EXPECT_TRUE(same_bits(threaded, expected)) << c.dim;
    EXPECT_FALSE(same_bits(actual, x));
  }
}

TEST_P(SmallOps, HadamardIsTheDefinitionBitForBit) {
  for (const std::int64_t dim : {8, 16, 64, 128, 1024}) {
    const std::int64_t rows = 133;
    const auto x = normal(rows * dim, 7);
    auto expected = x, actual = x, threaded = x;
    ref_->run(HadamardParams{rows, dim, expected.data()});
    cpu_->run(HadamardParams{rows, dim, actual.data()});
    threaded_->run(HadamardParams{rows, dim, threaded.data()});
    EXPECT_TRUE(same_bits(actual, expected)) << dim;
    EXPECT_TRUE(same_bits(threaded, expected)) << dim;
  }
}

TEST_P(SmallOps, Compress) {
  struct Shape {
    std::int64_t ratio, dim;
    bool overlap, previous;
  };
  for (const Shape& shape :
       {Shape{4, 512, true, true}, {4, 128, true, false}, {128, 80, false, false}, {8, 24, false, false}}) {
    const std::int64_t ratio = shape.ratio, dim = shape.dim;
    const bool overlap = shape.overlap, previous = shape.previous;
    const std::int64_t blocks = 9, wide = overlap ? 2 * dim : dim,
                       tokens = (blocks + (previous ? 1 : 0)) * ratio;
    const auto values = normal(tokens * wide, 8), gates = normal(tokens * wide, 9, 4);
    std::vector<float> expected(static_cast<std::size_t>(blocks * dim)), actual(expected), threaded(expected);
    const auto params = [&](std::vector<float>& to) {
      return CompressParams{blocks, ratio, dim, overlap, previous, values.data(), gates.data(), to.data()};
    };
    ref_->run(params(expected));
    cpu_->run(params(actual));
    threaded_->run(params(threaded));
    EXPECT_LT(relative_error(actual, expected), 2e-7) << ratio;
    EXPECT_TRUE(same_bits(threaded, actual));
  }
}

TEST_P(SmallOps, HyperConnections) {
  for (const auto& shape : {std::pair<std::int64_t, std::int64_t>{4, 4096}, {4, 208}, {2, 64}, {4, 20}}) {
    const std::int64_t n = shape.first, dim = shape.second;
    const std::int64_t tokens = 9, mixes = (2 + n) * n;
    const auto streams = normal(tokens * n * dim, 10, 3), mix = normal(tokens * mixes, 11, 20),
               scale = normal(3, 12), base = normal(mixes, 13), y = normal(tokens * dim, 14);
    struct Result {
      std::vector<float> pre, post, comb, out, streams, head;
    };
    const auto run = [&](Backend& backend) {
      Result r;
      r.pre.resize(static_cast<std::size_t>(tokens * n));
      r.post = r.pre;
      r.comb.resize(static_cast<std::size_t>(tokens * n * n));
      r.out.resize(static_cast<std::size_t>(tokens * dim));
      r.head = r.out;
      r.streams = streams;
      backend.run(HcPreParams{tokens, n, dim, streams.data(), mix.data(), scale.data(), base.data(), 20,
                              1e-6F, 1e-6F, r.pre.data(), r.post.data(), r.comb.data(), r.out.data()});
      backend.run(HcPostParams{tokens, n, dim, y.data(), r.post.data(), r.comb.data(), r.streams.data()});
      backend.run(HcHeadParams{tokens, n, dim, streams.data(), mix.data(), scale.data(), base.data(), 1e-6F,
                               1e-6F, r.head.data()});
      return r;
    };
    const Result expected = run(*ref_), actual = run(*cpu_), threaded = run(*threaded_);
    for (const auto part : {&Result::pre, &Result::post, &Result::out, &Result::streams, &Result::head}) {
      EXPECT_LT(relative_error(actual.*part, expected.*part), 2e-7) << n << " x " << dim;
    }
    EXPECT_LT(relative_error(actual.comb, expected.comb), 5e-7);  // behind 40 normalisations
    for (const auto part :
         {&Result::pre, &Result::post, &Result::comb, &Result::out, &Result::streams, &Result::head}) {
      EXPECT_TRUE(same_bits(threaded.*part, actual.*part));
    }
  }
}

TEST_P(SmallOps, GateChoosesAndWeighs) {
  const std::int64_t tokens = 40;
  for (const auto& shape : {std::pair<std::int64_t, std::int64_t>{256, 6}, {16, 3}, {10, 2}, {32, 32}}) {
    const std::int64_t n = shape.first, k = shape.second;
    auto logits = normal(tokens * n, 15, 5);
    for (std::int64_t e = 0; e < n; ++e)
      logits[static_cast<std::size_t>(e)] = static_cast<float>(e % 3);  // ties
    for (std::int64_t e = 0; e < n; ++e)
      logits[static_cast<std::size_t>(n + e)] = static_cast<float>(e - n / 2) * 160 / static_cast<float>(n);
    const auto bias = std::vector<float>(static_cast<std::size_t>(n), 0.25F);
    std::vector<std::int32_t> table, ids;
    for (std::int64_t i = 0; i < 7 * k; ++i) table.push_back(static_cast<std::int32_t>(i * 5 % n));
    for (std::int64_t t = 0; t < tokens; ++t) ids.push_back(static_cast<std::int32_t>(t % 7));
    struct Result {
      std::vector<float> scores, weights;
      std::vector<std::int32_t> indices;
    };
    for (const bool by_table : {false, true}) {
      const auto run = [&](Backend& backend) {
        Result r{std::vector<float>(logits.size()), std::vector<float>(static_cast<std::size_t>(tokens * k)),
                 std::vector<std::int32_t>(static_cast<std::size_t>(tokens * k))};
        backend.run(GateParams{tokens, n, k, logits.data(), by_table ? nullptr : bias.data(),
                               by_table ? table.data() : nullptr, ids, 1.5F, r.scores.data(),
                               r.indices.data(), r.weights.data()});
        return r;
      };
      const Result expected = run(*ref_), actual = run(*cpu_), threaded = run(*threaded_);
      EXPECT_EQ(actual.indices, expected.indices) << n;
      EXPECT_LT(worst_relative_error(actual.scores, expected.scores), 2.5e-7) << n;
      EXPECT_LT(relative_error(actual.weights, expected.weights), 2e-7) << n;
      EXPECT_EQ(threaded.indices, actual.indices);
      EXPECT_TRUE(same_bits(threaded.scores, actual.scores) && same_bits(threaded.weights, actual.weights));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, SmallOps,
                         testing::Values("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2",
                                         "neon_dotprod", "neon", "scalar"),
                         [](const auto& test) { return std::string(test.param); });

TEST(Profile, CountsCallsTimeAndWork) {
  ThreadPool pool(1);
  const auto backend = std::move(*make_backend("cpu", "", pool));
  const auto x = normal(3 * 64, 1), w = normal(32 * 64, 2);
  Linear weight{32, 64, Linear::Format::f32, reinterpret_cast<const std::byte*>(w.data()), nullptr, "w"};
  std::vector<float> y(3 * 64);
  Profile profile;
  backend->set_profile(&profile);
  for (int i = 0; i < 2; ++i)
    backend->run(LinearParams{3, x.data(), &weight, 1, InputRounding::none, y.data()});
  weight.name = "v";
  backend->run(LinearParams{1, x.data(), &weight, 1, InputRounding::none, y.data()});
  backend->run(RmsNormParams{3, 64, x.data(), nullptr, 1e-6F, y.data()});
  backend->set_profile(nullptr);
  backend->run(RmsNormParams{3, 64, x.data(), nullptr, 1e-6F, y.data()});
  ASSERT_EQ(profile.entries().size(), 3U);
  const auto& [work, calls, seconds] = profile.entries()[0];
  EXPECT_EQ(work.op, "linear");
  EXPECT_EQ(work.parameter, "w");
  EXPECT_EQ(calls, 2);
  EXPECT_GT(seconds, 0);
  EXPECT_EQ(work.weight_bytes, 2.0 * 32 * 64 * 4);
  EXPECT_EQ(work.flops, 2.0 * 2 * 3 * 32 * 64);
  EXPECT_EQ(profile.entries()[1].work.parameter, "v");
  EXPECT_EQ(profile.entries()[2].work.op, "rms_norm");
  EXPECT_EQ(profile.entries()[2].calls, 1);
}

}  // namespace
}  // namespace hadal
