#include "train/matmul.h"

#include <bit>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "base/rng.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

std::vector<float> numbers(std::int64_t n, std::uint64_t stream) {
  const Philox rng(7, stream);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(rng.uniform(i) * 2 - 1);
  return out;
}

struct Case {
  std::int64_t m, n, k;
  bool a_transposed, b_transposed, accumulate;
};

// Shapes around the edges of tiles (12 x 32, 6 x 16, 4 x 16), of units and of depth blocks (256).
std::vector<Case> cases() {
  std::vector<Case> out;
  const std::int64_t sizes[][3] = {{1, 1, 1},      {12, 32, 256}, {13, 33, 257}, {11, 31, 255}, {5, 100, 17},
                                   {130, 70, 514}, {97, 65, 600}, {6, 16, 8},    {7, 17, 9},    {3, 8, 7}};
  for (const auto& s : sizes) {
    for (int flags = 0; flags < 8; ++flags)
      out.push_back({s[0], s[1], s[2], (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0});
  }
  return out;
}

class Operands {
 public:
  explicit Operands(const Case& s)
      : a(numbers(s.m * s.k, 1)), b(numbers(s.n * s.k, 2)), c(numbers(s.m * (s.n + 3), 3)) {
    const std::int64_t a_stride = s.a_transposed ? s.m : s.k, b_stride = s.b_transposed ? s.k : s.n;
    params = {s.m,      s.n,      s.k,
              a.data(), a_stride, s.a_transposed,
              b.data(), b_stride, s.b_transposed,
              c.data(), s.n + 3,  s.accumulate};
  }
  std::vector<float> a, b, c;
  MatmulParams params;
};

// |error| of a sum of k products of numbers below 1: k roundings of sums that grow like sqrt(k).
void expect_product(const Operands& o, const std::vector<float>& before, bool bf16) {
  const MatmulParams& p = o.params;
  const auto value = [&](float x) { return double{bf16 ? bf16_to_f32(f32_to_bf16(x)) : x}; };
  for (std::int64_t i = 0; i < p.m; ++i) {
    for (std::int64_t j = 0; j < p.n + 3; ++j) {
      const auto at = static_cast<std::size_t>(i * p.c_stride + j);
      if (j >= p.n) {
        ASSERT_EQ(o.c[at], before[at]) << "outside of c";
        continue;
      }
      double sum = p.accumulate ? double{before[at]} : 0.0;
      for (std::int64_t k = 0; k < p.k; ++k) {
        sum += value(p.a_transposed ? p.a[k * p.a_stride + i] : p.a[i * p.a_stride + k]) *
               value(p.b_transposed ? p.b[j * p.b_stride + k] : p.b[k * p.b_stride + j]);
      }
      ASSERT_NEAR(o.c[at], sum, 1e-7 * static_cast<double>(p.k) + 1e-6)
          << p.m << " x " << p.n << " x " << p.k << " at " << i << ", " << j;
    }
  }
}

class MatmulTest : public testing::TestWithParam<Precision> {};

TEST_P(MatmulTest, EveryShape) {
  ThreadPool pool(1);
  Matmul matmul(pool);
  for (const Case& c : cases()) {
    Operands o(c);
    const std::vector<float> before = o.c;
    matmul.run(o.params, GetParam());
    expect_product(o, before, GetParam() == Precision::bf16);
  }
}

TEST_P(MatmulTest, TogetherAndOnAnyNumberOfThreadsAsAlone) {
  ThreadPool one(1), three(3);
  Matmul alone(one), together(three);
  std::vector<Operands> a, b;
  for (const Case& c : cases()) {
    a.emplace_back(c);
    b.emplace_back(c);
  }
  std::vector<MatmulParams> all;
  for (Operands& o : a) alone.run(o.params, GetParam());
  for (Operands& o : b) all.push_back(o.params);
  together.run(all, GetParam());
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_EQ(a[i].c, b[i].c);
}

// A product with one shows how its operand was rounded.
TEST_P(MatmulTest, RoundsAsTheCodecDoes) {
  ThreadPool pool(1);
  Matmul matmul(pool);
  std::vector<float> x = numbers(40, 5);
  for (const std::uint32_t bits : {0x3f808000U, 0x3f818000U, 0x3f808001U, 0x3f807fffU, 0x7f7fffffU,
                                   0x7f800000U, 0xff800000U, 0x7fc12345U, 0x7f800001U, 0x80000000U})
    x.push_back(std::bit_cast<float>(bits));
  const float one = 1;
  const auto n = static_cast<std::int64_t>(x.size());
  for (const bool left : {false, true}) {
    std::vector<float> c(x.size());
    MatmulParams p;
    p.m = left ? n : 1, p.n = left ? 1 : n, p.k = 1;
    p.a = left ? x.data() : &one, p.a_stride = 1;
    p.b = left ? &one : x.data(), p.b_stride = left ? 1 : n;
    p.c = c.data(), p.c_stride = left ? 1 : n;
    matmul.run(p, GetParam());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float expected = GetParam() == Precision::bf16 ? bf16_to_f32(f32_to_bf16(x[i])) : x[i];
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(c[i])) << i;
      } else {
        EXPECT_EQ(c[i], expected) << i;
      }
    }
  }
}

// The rows of c do not depend on how many there are.
TEST_P(MatmulTest, RowsAreIndependent) {
  ThreadPool pool(1);
  Matmul matmul(pool);
  Operands all({40, 50, 300, false, true, false}), some = all;
  some.params.a = some.a.data();
  some.params.b = some.b.data();
  some.params.c = some.c.data();
  some.params.m = 7;
  matmul.run(all.params, GetParam());
  matmul.run(some.params, GetParam());
  for (std::size_t i = 0; i < 7 * 53; ++i) ASSERT_EQ(all.c[i], some.c[i]);
}

// Of c = a b with symmetric factors that commute: the part on and above the diagonal has the bits of the
// whole product, computed from the upper triangles alone.
TEST_P(MatmulTest, HalfOfASymmetricProductIsThatOfTheWhole) {
  ThreadPool one(1), three(3);
  Matmul whole(one), half(three);
  for (const std::int64_t n : {1, 12, 31, 65, 101, 300}) {
    const std::int64_t k = n / 2 + 1, words = n * n;
    const std::vector<float> y = numbers(n * k, 1);
    std::vector<float> s(static_cast<std::size_t>(words)), t = s, s_half(s.size(), NAN), t_half = s_half;
    std::vector<float> v = numbers(n * 7, 2), out(v.size()), out_half = out;
    MatmulParams gram{n, n, k, y.data(), k, false, y.data(), k, true, s.data(), n};
    whole.run(gram, GetParam());
    gram.c = s_half.data();
    gram.c_symmetric = true;
    half.run(gram, GetParam());

    MatmulParams square{n, n, n, s.data(), n, false, s.data(), n, false, t.data(), n};
    square.scale = 0.5F;
    square.add_scale = -2;
    square.add = s.data();
    whole.run(square, GetParam());
    square.a = square.b = square.add = s_half.data();
    square.c = t_half.data();
    square.a_symmetric = square.b_symmetric = square.c_symmetric = true;
    half.run(square, GetParam());

    MatmulParams left{n, 7, n, t.data(), n, false, v.data(), 7, false, out.data(), 7};
    whole.run(left, GetParam());
    left.a = t_half.data();
    left.c = out_half.data();
    left.a_symmetric = true;
    half.run(left, GetParam());
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i; j < n; ++j) {
        const auto at = static_cast<std::size_t>(i * n + j);
        ASSERT_EQ(s[at], s_half[at]) << n << ": " << i << ", " << j;
        ASSERT_EQ(t[at], t_half[at]) << n << ": " << i << ", " << j;
      }
    }
    ASSERT_EQ(out, out_half) << n;
  }
}

TEST_P(MatmulTest, AddsAnotherMatrix) {
  ThreadPool pool(1);
  Matmul matmul(pool);
  Operands o({37, 45, 270, false, false, false}), plain = o;
  plain.params.a = plain.a.data();
  plain.params.b = plain.b.data();
  plain.params.c = plain.c.data();
  const std::vector<float> other = numbers(37 * 48, 9);
  matmul.run(plain.params, GetParam());
  o.params.scale = 3;
  o.params.add_scale = -0.5F;
  o.params.add = other.data();
  matmul.run(o.params, GetParam());
  for (std::size_t i = 0; i < 37; ++i) {
    for (std::size_t j = 0; j < 45; ++j) {
      const std::size_t at = i * 48 + j;
      ASSERT_NEAR(o.c[at], 3 * plain.c[at] - 0.5F * other[at], 1e-5) << i << ", " << j;
    }
  }
}

TEST_P(MatmulTest, NoDepth) {
  ThreadPool pool(1);
  Matmul matmul(pool);
  float kept[2] = {1, 2}, cleared[2] = {1, 2};
  const MatmulParams products[] = {{1, 2, 0, nullptr, 0, false, nullptr, 0, false, kept, 2, true},
                                   {1, 2, 0, nullptr, 0, false, nullptr, 0, false, cleared, 2, false}};
  matmul.run(products, GetParam());
  EXPECT_EQ(kept[1], 2.0F);
  EXPECT_EQ(cleared[1], 0.0F);
}

INSTANTIATE_TEST_SUITE_P(Precisions, MatmulTest, testing::Values(Precision::f32, Precision::bf16),
                         [](const auto& precision) {
                           return precision.param == Precision::f32 ? "f32" : "bf16";
                         });

}  // namespace
}  // namespace hadal
