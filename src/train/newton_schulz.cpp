#include "train/newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace hadal {
namespace {

struct Coefficients {
  float a, b, c;
};
constexpr Coefficients kBlowUp{3.4445F, -4.7750F, 2.0315F};
constexpr Coefficients kSettle{2.0F, -1.5F, 0.5F};
constexpr int kBlowUpSteps = 8, kSettleSteps = 2;

// In double and in a fixed order: eight running sums, so that an addition need not wait for the one before.
double frobenius_norm(const float* x, std::int64_t n) {
  constexpr std::int64_t kSums = 8;
  double sums[kSums] = {};
  for (std::int64_t i = 0; i < n; ++i)
    sums[i % kSums] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0;
  for (const double part : sums) sum += part;
  return std::sqrt(sum);
}

// out [columns, rows] = x^T, by squares that fit in the first-level cache.
void transpose(const float* x, std::int64_t rows, std::int64_t columns, float* out) {
  constexpr std::int64_t kSide = 32;
  for (std::int64_t i0 = 0; i0 < rows; i0 += kSide) {
    for (std::int64_t j0 = 0; j0 < columns; j0 += kSide) {
      for (std::int64_t j = j0; j < std::min(j0 + kSide, columns); ++j) {
        for (std::int64_t i = i0; i < std::min(i0 + kSide, rows); ++i) out[j * rows + i] = x[i * columns + j];
      }
    }
  }
}

void reserve(Buffer<float>& buffer, std::int64_t n) {
  if (static_cast<std::int64_t>(buffer.size()) < n)
    buffer = Buffer<float>::uninitialised(static_cast<std::size_t>(n));
}

}  // namespace

double newton_schulz_flops(std::int64_t rows, std::int64_t columns) {
  const auto n = static_cast<double>(std::min(rows, columns)),
             m = static_cast<double>(std::max(rows, columns));
  // Y Y^T and its square by halves, then (n x n)(n x m)
  return (kBlowUpSteps + kSettleSteps) * (n * (n + 1) * m + n * n * (n + 1) + 2 * n * n * m);
}

void NewtonSchulz::run(float* x, std::int64_t rows, std::int64_t columns, Matmul& matmul) {
  const double norm = frobenius_norm(x, rows * columns);
  if (norm == 0) return;
  const bool tall = rows > columns;
  const std::int64_t n = tall ? columns : rows, m = tall ? rows : columns;
  reserve(y_, n * m);
  reserve(next_, n * m);
  reserve(gram_, n * n);
  reserve(factor_, n * n);
  if (tall) {
    transpose(x, rows, columns, y_.data());
  } else {
    std::memcpy(y_.data(), x, static_cast<std::size_t>(n * m) * sizeof(float));
  }
  // In double: 1 / norm may be beyond float32.
  for (std::int64_t i = 0; i < n * m; ++i) {
    float& y = y_.data()[i];
    y = static_cast<float>(static_cast<double>(y) * (1 / norm));
  }
  for (int step = 0; step < kBlowUpSteps + kSettleSteps; ++step) {
    const Coefficients k = step < kBlowUpSteps ? kBlowUp : kSettle;
    const float* y = y_.data();
    const float* gram = gram_.data();
    // S = Y Y^T
    matmul.run({.m = n,
                .n = n,
                .k = m,
                .a = y,
                .a_stride = m,
                .b = y,
                .b_stride = m,
                .b_transposed = true,
                .c = gram_.data(),
                .c_stride = n,
                .c_symmetric = true},
               precision_);
    // T = c S S + b S
    matmul.run({.m = n,
                .n = n,
                .k = n,
                .a = gram,
                .a_stride = n,
                .b = gram,
                .b_stride = n,
                .c = factor_.data(),
                .c_stride = n,
                .scale = k.c,
                .add_scale = k.b,
                .add = gram,
                .a_symmetric = true,
                .b_symmetric = true,
                .c_symmetric = true},
               precision_);
    // Y <- T Y + a Y
    matmul.run({.m = n,
                .n = m,
                .k = n,
                .a = factor_.data(),
                .a_stride = n,
                .b = y,
                .b_stride = m,
                .c = next_.data(),
                .c_stride = m,
                .add_scale = k.a,
                .add = y,
                .a_symmetric = true},
               precision_);
    std::swap(y_, next_);
  }
  if (tall) {
    transpose(y_.data(), n, m, x);
  } else {
    std::memcpy(x, y_.data(), static_cast<std::size_t>(n * m) * sizeof(float));
  }
}

}  // namespace hadal
