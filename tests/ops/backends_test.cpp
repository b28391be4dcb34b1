// Every fast path against the reference, for every instruction set that this machine has, on ragged sizes,
// and the bitwise promise: the result of a token does not depend on its company or on the threads.
#include <cmath>
#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "ops/backend.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

std::vector<float> normal(std::size_t n, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> out(n);
  for (float& x : out) x = distribution(generator);
  return out;
}

// A matrix of the given format with random codes and scales around 1.
struct Matrix {
  std::vector<std::byte> weight;
  std::vector<std::uint8_t> scale;
  Linear linear;

  Matrix(Linear::Format format, std::int64_t out, std::int64_t in, unsigned seed)
      : linear{out, in, format, nullptr, nullptr} {
    std::mt19937 generator(seed);
    const auto values = normal(static_cast<std::size_t>(out * in), seed);
    weight.resize(static_cast<std::size_t>(out * linear.row_bytes()));
    const auto put16 = [&](std::size_t i, std::uint16_t bits) {
      std::memcpy(weight.data() + 2 * i, &bits, 2);
    };
    for (std::size_t i = 0; i < values.size(); ++i) {
      switch (format) {
        case Linear::Format::f32:
          std::memcpy(weight.data() + 4 * i, &values[i], 4);
          break;
        case Linear::Format::f16:
          put16(i, f32_to_f16(values[i]));
          break;
        case Linear::Format::bf16:
          put16(i, f32_to_bf16(values[i]));
          break;
        case Linear::Format::fp8:
          weight[i] = std::byte{f32_to_e4m3(values[i])};
          break;
        case Linear::Format::fp4:
          weight[i / 2] |= std::byte{static_cast<std::uint8_t>(f32_to_e2m1(values[i]) << (i % 2 * 4))};
          break;
      }
    }
    const std::int64_t scales =
        format == Linear::Format::fp4 ? out * (in / 32) : (out + 127) / 128 * ((in + 127) / 128);
    for (std::int64_t i = 0; i < scales; ++i)
      scale.push_back(static_cast<std::uint8_t>(126 + generator() % 3));
    linear.weight = weight.data();
    linear.scale = scale.data();
  }
};

float relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    error += std::pow(double{actual[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return static_cast<float>(std::sqrt(error / norm));
}

constexpr InputRounding kRoundings[] = {InputRounding::none, InputRounding::e4m3, InputRounding::int8,
                                        InputRounding::bf16};
constexpr Linear::Format kFormats[] = {Linear::Format::f32, Linear::Format::f16, Linear::Format::bf16,
                                       Linear::Format::fp8, Linear::Format::fp4};

class BackendTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = make_backend("cpu", GetParam(), pool_);
    if (!backend) GTEST_SKIP() << backend.error().message();
    backend_ = std::move(*backend);
    other_ = std::move(*make_backend("cpu", GetParam(), other_pool_));
  }
  void prepare(const Linear& w) {
    backend_->prepare(w, InputRounding::int8);
    other_->prepare(w, InputRounding::int8);
  }
  ThreadPool pool_{1}, other_pool_{3};
  std::unique_ptr<Backend> backend_, other_;
};

TEST_P(BackendTest, LinearMatchesReferenceAndItself) {
  for (const auto format : kFormats) {
    for (const std::int64_t groups : {1, 2}) {
      const std::int64_t out = 2 * 67, in = 384, most = 29;
      const Matrix w(format, out, in, 7);
      const auto x = normal(static_cast<std::size_t>(most * groups * in), 11);
      for (const auto rounding : kRoundings) {
        if (rounding == InputRounding::int8) prepare(w.linear);
        std::vector<float> expected(static_cast<std::size_t>(most * out)), all(expected.size());
        ref::linear({most, x.data(), &w.linear, groups, rounding, expected.data()}, pool_);
        backend_->run(LinearParams{most, x.data(), &w.linear, groups, rounding, all.data()});
        EXPECT_LT(relative_error(all, expected), 3e-7F);
        // The same bits for any number of tokens at once and any threads.
        for (std::int64_t n = 1; n < most; ++n) {
          std::vector<float> part(static_cast<std::size_t>(n * out));
          other_->run(LinearParams{n, x.data(), &w.linear, groups, rounding, part.data()});
          ASSERT_EQ(std::memcmp(part.data(), all.data(), part.size() * 4), 0) << "with " << n << " tokens";
        }
      }
    }
  }
}

// A few rows and many tokens: the tokens are split over the threads.
TEST_P(BackendTest, FewRowsOfManyTokensMatchReferenceAndItself) {
  const std::int64_t out = 24, in = 256, most = 203;
  for (const auto format : {Linear::Format::f32, Linear::Format::bf16, Linear::Format::fp4}) {
    for (const auto rounding : kRoundings) {
      const Matrix w(format, out, in, 3);
      const auto x = normal(static_cast<std::size_t>(most * in), 5);
      std::vector<float> expected(static_cast<std::size_t>(most * out)), all(expected.size()),
          one(expected.size());
      ref::linear({most, x.data(), &w.linear, 1, rounding, expected.data()}, pool_);
      other_->run(LinearParams{most, x.data(), &w.linear, 1, rounding, all.data()});
      EXPECT_LT(relative_error(all, expected), 3e-7F);
      for (std::int64_t t = 0; t < most; ++t)
        backend_->run(LinearParams{1, x.data() + t * in, &w.linear, 1, rounding, one.data() + t * out});
      EXPECT_EQ(std::memcmp(one.data(), all.data(), all.size() * 4), 0);
    }
  }
}

// FP4 blocks whose scale counts as zero, and scales near the end of the range, in a panel of many tokens.
TEST_P(BackendTest, Int8TakesScalesFromBothEnds) {
  const std::int64_t out = 35, in = 256, n = 11;
  for (const std::uint8_t most :
       {std::uint8_t{127}, std::uint8_t{230}, std::uint8_t{231}, std::uint8_t{245}}) {
    Matrix w(Linear::Format::fp4, out, in, 9);
    std::mt19937 generator(most);
    const std::uint8_t bytes[] = {0, 1, kLeastScale - 1, kLeastScale, 100, 127, most};
    for (std::uint8_t& scale : w.scale) scale = bytes[generator() % std::size(bytes)];
    const auto x = normal(static_cast<std::size_t>(n * in), 13);
    std::vector<float> expected(static_cast<std::size_t>(n * out)), all(expected.size()),
        one(expected.size());
    ref::linear({n, x.data(), &w.linear, 1, InputRounding::int8, expected.data()}, pool_);
    backend_->run(LinearParams{n, x.data(), &w.linear, 1, InputRounding::int8, all.data()});
    for (std::size_t i = 0; i < all.size(); ++i)
      ASSERT_LT(std::fabs(all[i] - expected[i]),
                1e-5F * std::fabs(expected[i]) + std::ldexp(1e-3F, most - 127));
    for (std::int64_t t = 0; t < n; ++t) {
      other_->run(
          LinearParams{1, x.data() + t * in, &w.linear, 1, InputRounding::int8, one.data() + t * out});
    }
    EXPECT_EQ(std::memcmp(one.data(), all.data(), all.size() * 4), 0);
  }
}

// The dot products are exact integers and the order of the rest is one (kernels.h).
TEST_P(BackendTest, Int8HasTheSameBitsInEverySet) {
  const auto plain = std::move(*make_backend("cpu", "scalar", pool_));
  for (const auto format : {Linear::Format::fp8, Linear::Format::fp4}) {
    for (const std::int64_t in : {128, 384, 1152}) {
      const std::int64_t out = 67, n = 7;
      const Matrix w(format, out, in, 7);
      const auto x = normal(static_cast<std::size_t>(n * in), 11);
      const auto run = [&](Backend& backend) {
        backend.prepare(w.linear, InputRounding::int8);
        std::vector<float> y(static_cast<std::size_t>(n * out));
        backend.run(LinearParams{n, x.data(), &w.linear, 1, InputRounding::int8, y.data()});
        return y;
      };
      EXPECT_EQ(run(*backend_), run(*plain));
    }
  }
}

// Sets without BF16 dot products sum in one order (gemm_e4m3.inc).
TEST_P(BackendTest, OfficialHasTheSameBitsInEverySetThatSumsInFloat32) {
  if (GetParam() == std::string("avx512bf16")) GTEST_SKIP() << "sums as vdpbf16ps does";
  const auto plain = std::move(*make_backend("cpu", "scalar", pool_));
  for (const auto format : {Linear::Format::fp8, Linear::Format::fp4}) {
    for (const std::int64_t in : {128, 640, 1152}) {
      for (const std::int64_t n : {1, 3, 11}) {
        const std::int64_t out = 67;
        Matrix w(format, out, in, 7);
        w.scale[0] = 3;  // as good as zero
        const auto x = normal(static_cast<std::size_t>(n * in), 11);
        const auto run = [&](Backend& backend) {
          std::vector<float> y(static_cast<std::size_t>(n * out));
          backend.run(LinearParams{n, x.data(), &w.linear, 1, InputRounding::e4m3, y.data()});
          return y;
        };
        EXPECT_EQ(run(*backend_), run(*plain)) << in << " " << n;
      }
    }
  }
}

// Eight products of FP4 have 25 bits when all are near the largest and one is near the smallest. Few tokens
// and many round them alike; and an input that is no number leaves none.
TEST_P(BackendTest, OfficialFp4RoundsTheLongestSumsOnce) {
  const std::int64_t out = 33, in = 256, n = 9;
  Matrix w(Linear::Format::fp4, out, in, 7);
  std::mt19937 generator(3);
  for (std::byte& pair : w.weight)
    pair = generator() % 5 == 0 ? std::byte{0x17} : std::byte{0x77};  // 6, .5; 6, 6
  std::vector<float> x(static_cast<std::size_t>(n * in), 448);
  for (float& v : x) {
    if (generator() % 8 == 0) v = std::ldexp(static_cast<float>(generator() % 16), -9);
  }
  std::vector<float> many(static_cast<std::size_t>(n * out)), expected(many.size()),
      one(static_cast<std::size_t>(out));
  ref::linear({n, x.data(), &w.linear, 1, InputRounding::e4m3, expected.data()}, pool_);
  backend_->run(LinearParams{n, x.data(), &w.linear, 1, InputRounding::e4m3, many.data()});
  EXPECT_LT(relative_error(many, expected), 3e-7F);
  for (std::int64_t t = 0; t < n; ++t) {
    other_->run(LinearParams{1, x.data() + t * in, &w.linear, 1, InputRounding::e4m3, one.data()});
    ASSERT_EQ(std::memcmp(one.data(), many.data() + t * out, one.size() * 4), 0) << t;
  }
  x[5] = std::nanf("");
  backend_->run(LinearParams{1, x.data(), &w.linear, 1, InputRounding::e4m3, one.data()});
  for (const float y : one) EXPECT_TRUE(std::isnan(y));
}

TEST_P(BackendTest, OddDepthFallsBackToReference) {
  const Matrix w(Linear::Format::f32, 5, 40, 3);
  const auto x = normal(3 * 40, 4);
  std::vector<float> expected(15), actual(15);
  ref::linear({3, x.data(), &w.linear, 1, InputRounding::none, expected.data()}, pool_);
  backend_->run(LinearParams{3, x.data(), &w.linear, 1, InputRounding::none, actual.data()});
  EXPECT_EQ(actual, expected);
}

TEST_P(BackendTest, ExpertsMatchReferenceAndThemselves) {
  const std::int64_t d = 256, inter = 128, n_experts = 7, k = 3, most = 11;
  for (const auto format : {Linear::Format::fp4, Linear::Format::bf16}) {
    std::vector<Matrix> matrices;
    matrices.reserve(3 * (n_experts + 1));
    std::vector<Expert> experts;
    for (std::int64_t e = 0; e <= n_experts; ++e) {
      const auto seed = static_cast<unsigned>(100 + 3 * e);
      const auto own = e == n_experts && format == Linear::Format::fp4 ? Linear::Format::fp8 : format;
      matrices.emplace_back(own, inter, d, seed);
      matrices.emplace_back(own, d, inter, seed + 1);
      matrices.emplace_back(own, inter, d, seed + 2);
      const auto last = matrices.end();
      experts.push_back({last[-3].linear, last[-2].linear, last[-1].linear});
    }
    const auto x = normal(static_cast<std::size_t>(most * d), 5, 0.3F);
    std::mt19937 generator(6);
    std::vector<std::int32_t> indices;
    std::vector<float> weights;
    for (std::int64_t t = 0; t < most; ++t) {
      std::vector<std::int32_t> ids = {0, 1, 2, 3, 4, 5, 6};
      std::shuffle(ids.begin(), ids.end(), generator);
      for (std::int64_t i = 0; i < k; ++i) {
        indices.push_back(ids[static_cast<std::size_t>(i)]);
        weights.push_back(0.2F + 0.1F * static_cast<float>(i));
      }
    }
    for (const auto rounding : kRoundings) {
      if (rounding == InputRounding::int8) {
        for (const Matrix& m : matrices) prepare(m.linear);
      }
      const auto run = [&](Backend* backend, std::int64_t n) {
        std::vector<float> out(static_cast<std::size_t>(n * d));
        const ExpertsParams p{n,
                              d,
                              inter,
                              k,
                              x.data(),
                              indices.data(),
                              weights.data(),
                              std::span(experts).first(n_experts),
                              &experts.back(),
                              10,
                              rounding,
                              out.data()};
        if (backend != nullptr)
          backend->run(p);
        else
          ref::experts(p, pool_);
        return out;
      };
      const auto expected = run(nullptr, most), all = run(backend_.get(), most);
      // With quantised inputs one rounding may fall the other way in front of w2.
      EXPECT_LT(relative_error(all, expected), rounding != InputRounding::none ? 3e-3F : 1e-6F);
      for (std::int64_t n = 1; n < most; ++n) {
        const auto part = run(other_.get(), n);
        ASSERT_EQ(std::memcmp(part.data(), all.data(), part.size() * 4), 0) << "with " << n << " tokens";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, BackendTest,
                         testing::Values("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2",
                                         "neon_dotprod", "neon", "scalar"),
                         [](const auto& test) { return std::string(test.param); });

TEST(MakeBackend, NamesWhatThereIs) {
  ThreadPool pool(1);
  const auto backend = make_backend("cpu", "mmx", pool);
  ASSERT_FALSE(backend.has_value());
  EXPECT_NE(backend.error().message().find("scalar"), std::string::npos);
  EXPECT_FALSE(make_backend("tpu", "", pool).has_value());
}

}  // namespace
}  // namespace hadal
