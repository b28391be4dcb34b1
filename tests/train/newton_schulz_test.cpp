#include "train/newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "base/rng.h"

namespace hadal {
namespace {

using Matrix = std::vector<double>;

// On the calling thread alone.
void orthogonalise(std::vector<float>& x, std::int64_t rows, std::int64_t columns, Precision precision) {
  ThreadPool pool(1);
  Matmul matmul(pool);
  NewtonSchulz(precision).run(x.data(), rows, columns, matmul);
}

// [rows, columns], rows >= columns, with orthonormal columns: Gram-Schmidt, twice, on random numbers.
Matrix orthonormal(std::int64_t rows, std::int64_t columns, std::uint64_t stream) {
  const Philox random(7, stream);
  Matrix q(static_cast<std::size_t>(rows * columns));
  const auto at = [&](std::int64_t i, std::int64_t j) -> double& {
    return q[static_cast<std::size_t>(i * columns + j)];
  };
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = random.uniform(i) - 0.5;
  for (std::int64_t j = 0; j < columns; ++j) {
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t other = 0; other < j; ++other) {
        double dot = 0;
        for (std::int64_t i = 0; i < rows; ++i) dot += at(i, j) * at(i, other);
        for (std::int64_t i = 0; i < rows; ++i) at(i, j) -= dot * at(i, other);
      }
    }
    double norm = 0;
    for (std::int64_t i = 0; i < rows; ++i) norm += at(i, j) * at(i, j);
    for (std::int64_t i = 0; i < rows; ++i) at(i, j) /= std::sqrt(norm);
  }
  return q;
}

// V diag(s) W^T, [rows, columns].
std::vector<float> with_singular_values(std::int64_t rows, std::int64_t columns,
                                        const std::vector<double>& s) {
  const auto n = static_cast<std::int64_t>(s.size());
  const Matrix v = orthonormal(rows, n, 1), w = orthonormal(columns, n, 2);
  std::vector<float> x(static_cast<std::size_t>(rows * columns));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < n; ++k) {
        sum += v[static_cast<std::size_t>(i * n + k)] * s[static_cast<std::size_t>(k)] *
               w[static_cast<std::size_t>(j * n + k)];
      }
      x[static_cast<std::size_t>(i * columns + j)] = static_cast<float>(sum);
    }
  }
  return x;
}

// Eigenvalues of the symmetric a [n, n], by Jacobi rotations.
std::vector<double> eigenvalues(Matrix a, std::int64_t n) {
  const auto at = [&](std::int64_t i, std::int64_t j) -> double& {
    return a[static_cast<std::size_t>(i * n + j)];
  };
  for (int sweep = 0; sweep < 12; ++sweep) {
    for (std::int64_t p = 0; p < n; ++p) {
      for (std::int64_t q = p + 1; q < n; ++q) {
        if (std::fabs(at(p, q)) < 1e-12) continue;
        const double theta = (at(q, q) - at(p, p)) / (2 * at(p, q));
        const double t = std::copysign(1, theta) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (std::int64_t k = 0; k < n; ++k) {
          const double left = at(k, p), right = at(k, q);
          at(k, p) = c * left - s * right;
          at(k, q) = s * left + c * right;
        }
        for (std::int64_t k = 0; k < n; ++k) {
          const double up = at(p, k), down = at(q, k);
          at(p, k) = c * up - s * down;
          at(q, k) = s * up + c * down;
        }
      }
    }
  }
  std::vector<double> values;
  for (std::int64_t i = 0; i < n; ++i) values.push_back(at(i, i));
  return values;
}

// Ascending, of u [rows, columns].
std::vector<double> singular_values(const std::vector<float>& u, std::int64_t rows, std::int64_t columns) {
  const std::int64_t n = std::min(rows, columns), m = std::max(rows, columns);
  const auto at = [&](std::int64_t i, std::int64_t k) {
    return static_cast<double>(
        u[static_cast<std::size_t>(rows <= columns ? i * columns + k : k * columns + i)]);
  };
  Matrix gram(static_cast<std::size_t>(n * n));
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t k = 0; k < m; ++k) gram[static_cast<std::size_t>(i * n + j)] += at(i, k) * at(j, k);
    }
  }
  std::vector<double> values = eigenvalues(std::move(gram), n);
  for (double& value : values) value = std::sqrt(std::max(0.0, value));
  std::sort(values.begin(), values.end());
  return values;
}

// From `least` to 1 in equal ratios, with a Frobenius norm of one.
std::vector<double> spread(std::int64_t n, double least) {
  std::vector<double> s;
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    s.push_back(
        std::pow(least, static_cast<double>(i) / static_cast<double>(std::max<std::int64_t>(n - 1, 1))));
    sum += s.back() * s.back();
  }
  for (double& value : s) value = std::max(value / std::sqrt(sum), least);
  return s;
}

struct Case {
  std::int64_t rows, columns;
  double least;  // singular value, of a Frobenius norm of about one
};
constexpr Case kCases[] = {{64, 64, 1e-1}, {40, 150, 1e-4}, {150, 40, 1e-4}, {96, 96, 1e-4}, {1, 50, 1},
                           {50, 1, 1},     {24, 512, 1e-3}, {49, 97, 1e-4},  {7, 5, 1e-2}};

TEST(NewtonSchulz, SingularValuesLandAtOne) {
  for (const auto precision : {Precision::f32, Precision::bf16}) {
    const double tolerance = precision == Precision::f32 ? 0.01 : 0.03;
    for (const Case& c : kCases) {
      std::vector<float> x =
          with_singular_values(c.rows, c.columns, spread(std::min(c.rows, c.columns), c.least));
      orthogonalise(x, c.rows, c.columns, precision);
      const std::vector<double> s = singular_values(x, c.rows, c.columns);
      EXPECT_NEAR(s.front(), 1, tolerance) << c.rows << " x " << c.columns << " from " << c.least;
      EXPECT_NEAR(s.back(), 1, tolerance) << c.rows << " x " << c.columns << " from " << c.least;
    }
  }
}

TEST(NewtonSchulz, RandomMatrixKeepsItsSingularVectors) {
  constexpr std::int64_t kRows = 48, kColumns = 80;
  const Philox random(3, 3);
  std::vector<float> x(kRows * kColumns);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random.uniform(i) - 0.5);
  std::vector<float> u = x;
  orthogonalise(u, kRows, kColumns, Precision::f32);
  const std::vector<double> s = singular_values(u, kRows, kColumns);
  EXPECT_NEAR(s.front(), 1, 0.01);
  EXPECT_NEAR(s.back(), 1, 0.01);
  // X U^T = V diag(s) V^T is symmetric only if U has X's singular vectors.
  double asymmetry = 0, size = 0;
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < kRows; ++j) {
      double here = 0, mirrored = 0;
      for (std::int64_t k = 0; k < kColumns; ++k) {
        here += static_cast<double>(x[static_cast<std::size_t>(i * kColumns + k)]) *
                static_cast<double>(u[static_cast<std::size_t>(j * kColumns + k)]);
        mirrored += static_cast<double>(x[static_cast<std::size_t>(j * kColumns + k)]) *
                    static_cast<double>(u[static_cast<std::size_t>(i * kColumns + k)]);
      }
      asymmetry = std::max(asymmetry, std::fabs(here - mirrored));
      size = std::max(size, std::fabs(here));
    }
  }
  EXPECT_LT(asymmetry, 1e-5 * size);
}

// What the map does to one singular value far below the others: 1e-5 to 0.69, 1e-6 to 0.08 (training.md).
TEST(NewtonSchulz, SmallerValuesAreBlownUpAsFarAsTheyGo) {
  for (const auto& [small, wanted] : {std::pair{1e-5, 0.69}, std::pair{1e-6, 0.08}}) {
    std::vector<float> x = with_singular_values(2, 2, {1, small});
    orthogonalise(x, 2, 2, Precision::f32);
    EXPECT_NEAR(singular_values(x, 2, 2).front(), wanted, 0.08 * wanted) << small;
  }
}

TEST(NewtonSchulz, ScaleDoesNotMatterAndZeroStaysZero) {
  std::vector<float> x = with_singular_values(16, 32, spread(16, 1e-2)), tiny = x, zero(x.size());
  for (float& value : tiny) value *= 0x1p-100F;
  for (std::vector<float>* matrix : {&x, &tiny, &zero}) orthogonalise(*matrix, 16, 32, Precision::f32);
  EXPECT_EQ(x, tiny);
  EXPECT_EQ(zero, std::vector<float>(x.size()));
}

TEST(NewtonSchulz, ThreadsDoNotShow) {
  const std::vector<float> x = with_singular_values(130, 113, spread(113, 1e-3));
  ThreadPool pool(2);
  Matmul matmul(pool);
  for (const auto precision : {Precision::f32, Precision::bf16}) {
    std::vector<float> alone = x, together = x;
    orthogonalise(alone, 130, 113, precision);
    NewtonSchulz(precision).run(together.data(), 130, 113, matmul);
    EXPECT_EQ(alone, together);
  }
}

}  // namespace
}  // namespace hadal
