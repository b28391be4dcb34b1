// Linears and experts where kernels go wrong first: around the edge of a tile of tokens, experts that get all
// tokens or none, zeros, and numbers below float32's smallest normal one. Every instruction set against the
// reference.
#include <cmath>
#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "ops/backend.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

constexpr InputRounding kRoundings[] = {InputRounding::none, InputRounding::e4m3, InputRounding::int8};
constexpr Linear::Format kFormats[] = {Linear::Format::f32, Linear::Format::f16, Linear::Format::bf16,
                                       Linear::Format::fp8, Linear::Format::fp4};

// What a weight is drawn from.
enum class Values : std::uint8_t {
  ordinary,   // around 1
  zero,       // of both signs
  subnormal,  // the format's own, nothing else
  mixed,      // all three
};

class Matrix {
 public:
  Matrix(Linear::Format format, std::int64_t out, std::int64_t in, Values values, unsigned seed)
      : linear{out, in, format, nullptr, nullptr}, random_(seed) {
    bytes_.resize(static_cast<std::size_t>(out * linear.row_bytes()));
    const std::int64_t scales =
        format == Linear::Format::fp4 ? out * (in / 32) : (out + 127) / 128 * ((in + 127) / 128);
    // Blocks whose scale is E8M0's smallest, 2^-127, are nothing to all but the unrounded formats.
    for (std::int64_t i = 0; i < scales; ++i)
      scales_.push_back(static_cast<std::uint8_t>(values == Values::mixed && i % 5 == 0 ? 0 : 126 + i % 3));
    for (std::int64_t i = 0; i < out * in; ++i) {
      const Values kind = values == Values::mixed ? static_cast<Values>(random_() % 3) : values;
      put(i, kind, static_cast<unsigned>(random_()));
    }
    linear.weight = bytes_.data();
    linear.scale = scales_.data();
  }
  Matrix(Matrix&&) = default;  // what `linear` points to stays where it is

  Linear linear;

 private:
  // `bits` decide the value and, by their lowest one, its sign.
  void put(std::int64_t i, Values kind, unsigned bits) {
    const unsigned sign = bits & 1;
    bits >>= 1;
    const float x = static_cast<float>(1 + bits % 255) / 128;
    const auto store = [&](auto word) {
      std::memcpy(bytes_.data() + i * static_cast<std::int64_t>(sizeof(word)), &word, sizeof(word));
    };
    const auto pick = [&](std::uint32_t ordinary, std::uint32_t subnormals) {
      return kind == Values::ordinary ? ordinary : kind == Values::zero ? 0 : 1 + bits % subnormals;
    };
    switch (linear.format) {
      case Linear::Format::f32:
        return store(pick(std::bit_cast<std::uint32_t>(x), 0x7fffff) | sign << 31);
      case Linear::Format::f16:
        return store(static_cast<std::uint16_t>(pick(f32_to_f16(x), 0x3ff) | sign << 15));
      case Linear::Format::bf16:
        return store(static_cast<std::uint16_t>(pick(f32_to_bf16(x), 0x7f) | sign << 15));
      case Linear::Format::fp8:
        return store(static_cast<std::uint8_t>(pick(f32_to_e4m3(x), 7) | sign << 7));
      case Linear::Format::fp4: {  // its one subnormal is 0.5
        const auto code = static_cast<std::uint8_t>(pick(f32_to_e2m1(3 * x), 1) | sign << 3);
        bytes_[static_cast<std::size_t>(i / 2)] |= static_cast<std::byte>(code << (i % 2 * 4));
        return;
      }
    }
  }

  std::mt19937 random_;
  std::vector<std::byte> bytes_;
  std::vector<std::uint8_t> scales_;
};

std::vector<float> normal(std::int64_t n, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = distribution(generator);
  return out;
}

// Within `relative` of the norm. Instructions for BF16 take a number below 2^-126 for zero, in and out:
// `most` is what a whole sum may lose by that.
void expect_near(const std::vector<float>& actual, const std::vector<float>& expected, double relative,
                 double most, const std::string& what) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << what << " at " << i;
    error += std::pow(double{actual[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  EXPECT_LE(std::sqrt(error), relative * std::sqrt(norm) + most) << what;
}

std::string name_of(Linear::Format format, InputRounding rounding) {
  const char* const formats[] = {"f32", "f16", "bf16", "fp8", "fp4"};
  const char* const roundings[] = {"none", "e4m3", "int8"};
  return std::string(formats[static_cast<int>(format)]) + " " + roundings[static_cast<int>(rounding)];
}

class HardCasesTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = make_backend("cpu", GetParam(), pool_);
    if (!backend) GTEST_SKIP() << backend.error().message();
    backend_ = std::move(*backend);
  }
  std::vector<float> linear(const Matrix& w, const std::vector<float>& x, InputRounding rounding) {
    const auto n = static_cast<std::int64_t>(x.size()) / w.linear.in;
    std::vector<float> y(static_cast<std::size_t>(n * w.linear.out));
    backend_->run(LinearParams{n, x.data(), &w.linear, 1, rounding, y.data()});
    return y;
  }
  std::vector<float> reference(const Matrix& w, const std::vector<float>& x, InputRounding rounding) {
    const auto n = static_cast<std::int64_t>(x.size()) / w.linear.in;
    std::vector<float> y(static_cast<std::size_t>(n * w.linear.out));
    ref::linear({n, x.data(), &w.linear, 1, rounding, y.data()}, pool_);
    return y;
  }
  // Every format in every rounding, packed where that wants it.
  template <class Body>
  void for_each_linear(std::int64_t out, std::int64_t in, Values values, Body&& body) {
    for (const auto format : kFormats) {
      const Matrix w(format, out, in, values, 7);
      for (const auto rounding : kRoundings) {
        if (rounding == InputRounding::int8) backend_->prepare(w.linear, rounding);
        body(w, rounding, name_of(format, rounding));
      }
    }
  }

  ThreadPool pool_{2};
  std::unique_ptr<Backend> backend_;
};

TEST_P(HardCasesTest, TokensAroundATile) {
  const std::int64_t out = 51, in = 256, most = 65;
  const auto x = normal(most * in, 3);
  for_each_linear(
      out, in, Values::ordinary, [&](const Matrix& w, InputRounding rounding, const std::string& what) {
        const auto expected = reference(w, x, rounding), all = linear(w, x, rounding);
        expect_near(all, expected, 3e-7, 0, what);
        for (const std::int64_t n : {1, 63, 64}) {
          const std::vector<float> part(x.begin(), x.begin() + n * in);
          const auto y = linear(w, part, rounding);
          EXPECT_EQ(std::memcmp(y.data(), all.data(), y.size() * 4), 0) << what << ", " << n << " tokens";
        }
      });
}

TEST_P(HardCasesTest, ZerosGiveZeros) {
  const std::int64_t out = 19, in = 256, n = 5;
  std::vector<float> zeros(static_cast<std::size_t>(n * in));
  for (std::size_t i = 0; i < zeros.size(); i += 3) zeros[i] = -0.0F;
  const auto x = normal(n * in, 4);
  const std::vector<float> nothing(static_cast<std::size_t>(n * out));
  for_each_linear(out, in, Values::mixed,
                  [&](const Matrix& w, InputRounding rounding, const std::string& what) {
                    EXPECT_EQ(linear(w, zeros, rounding), nothing) << what;
                  });
  for_each_linear(out, in, Values::zero,
                  [&](const Matrix& w, InputRounding rounding, const std::string& what) {
                    EXPECT_EQ(linear(w, x, rounding), nothing) << what;
                  });
}

// Subnormal codes of the narrow formats are ordinary numbers in float32, and keep their values.
TEST_P(HardCasesTest, SubnormalWeights) {
  const std::int64_t out = 19, in = 384, n = 9;
  const auto x = normal(n * in, 5);
  for (const Values values : {Values::subnormal, Values::mixed}) {
    for_each_linear(out, in, values, [&](const Matrix& w, InputRounding rounding, const std::string& what) {
      const bool wide = w.linear.format == Linear::Format::f32 || w.linear.format == Linear::Format::bf16;
      const double most = wide ? 0x1p-126 * 20 * static_cast<double>(in * n * out) : 0;
      expect_near(linear(w, x, rounding), reference(w, x, rounding), 3e-7, most,
                  what + (values == Values::mixed ? ", mixed" : ""));
    });
  }
}

TEST_P(HardCasesTest, SubnormalInputs) {
  const std::int64_t out = 19, in = 384, n = 9;
  const double most = 0x1p-126 * 20 * static_cast<double>(in * n * out);
  const auto tiny = normal(n * in, 6, 1e-39F);
  auto mixed = normal(n * in, 7);
  for (std::size_t i = 0; i < mixed.size(); i += 2) mixed[i] = tiny[i];
  for_each_linear(
      out, in, Values::ordinary, [&](const Matrix& w, InputRounding rounding, const std::string& what) {
        expect_near(linear(w, tiny, rounding), reference(w, tiny, rounding), 0, most, what);
        expect_near(linear(w, mixed, rounding), reference(w, mixed, rounding), 3e-7, 0, what + ", mixed");
      });
}

TEST_P(HardCasesTest, OneExpertGetsAllTokensAndOthersNone) {
  const std::int64_t d = 256, inter = 128, n_experts = 6, k = 2, most = 65;
  const auto x = normal(most * d, 8, 0.3F);
  std::vector<std::int32_t> indices;
  std::vector<float> weights;
  for (std::int64_t t = 0; t < most; ++t) {  // 3 gets every token; 1 every other; 5 the rest but one; 0 that
    indices.insert(indices.end(), {3, t % 2 == 0 ? 1 : t == 11 ? 0 : 5});
    weights.insert(weights.end(), {0.7F, 0.3F});
  }
  for (const auto format : {Linear::Format::fp4, Linear::Format::fp8, Linear::Format::bf16}) {
    std::vector<Matrix> matrices;
    std::vector<Expert> experts;
    for (unsigned e = 0; e <= n_experts; ++e) {
      matrices.emplace_back(format, inter, d, Values::ordinary, 100 + 3 * e);
      matrices.emplace_back(format, d, inter, Values::ordinary, 101 + 3 * e);
      matrices.emplace_back(format, inter, d, Values::ordinary, 102 + 3 * e);
      const auto last = matrices.end();
      experts.push_back({last[-3].linear, last[-2].linear, last[-1].linear});
    }
    for (const auto rounding : kRoundings) {
      if (rounding == InputRounding::int8) {
        for (const Matrix& m : matrices) backend_->prepare(m.linear, rounding);
      }
      const auto params = [&](std::int64_t n, std::vector<float>& out) {
        out.resize(static_cast<std::size_t>(n * d));
        return ExpertsParams{n,
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
      };
      const std::string what = name_of(format, rounding);
      std::vector<float> expected, all, part;
      ref::experts(params(most, expected), pool_);
      backend_->run(params(most, all));
      // A rounding in front of w2 may fall the other way.
      expect_near(all, expected, rounding == InputRounding::none ? 1e-6 : 3e-3, 0, what);
      for (const std::int64_t n : {1, 2, 63, 64}) {
        backend_->run(params(n, part));
        EXPECT_EQ(std::memcmp(part.data(), all.data(), part.size() * 4), 0) << what << ", " << n << " tokens";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, HardCasesTest,
                         testing::Values("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2",
                                         "neon_dotprod", "neon", "scalar"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace hadal
