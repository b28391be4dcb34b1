#include "train/newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "train/sum_of_squares.h"

namespace hadal {
namespace {

struct Coefficients {
  float a, b, c;
};
constexpr Coefficients kBlowUp{3.4445F, -4.7750F, 2.0315F};
constexpr Coefficients kSettle{2.0F, -1.5F, 0.5F};
constexpr int kBlowUpSteps = 8, kSettleSteps = 2;

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

// The tall way round, Z = Y^T with n the smaller side: then Z Z^T Z becomes Z (Z^T Z), and of the three times
// that Z is packed for the products only one has to be transposed.
void NewtonSchulz::run(float* x, std::int64_t rows, std::int64_t columns, Matmul& matmul) {
  const double norm = std::sqrt(sum_of_squares({x, static_cast<std::size_t>(rows * columns)}));
  if (norm == 0) return;
  const bool wide = rows < columns;
  const std::int64_t n = wide ? rows : columns, m = wide ? columns : rows;
  reserve(z_, n * m);
  reserve(next_, n * m);
  reserve(gram_, n * n);
  reserve(factor_, n * n);
  if (wide) {
    transpose(x, rows, columns, z_.data());
  } else {
    std::memcpy(z_.data(), x, static_cast<std::size_t>(n * m) * sizeof(float));
  }
  // 1 / norm may be beyond float32: by its square root, twice.
  const auto root = static_cast<float>(std::sqrt(1 / norm));
  for (float& z : z_.span().first(static_cast<std::size_t>(n * m))) z = z * root * root;
  for (int step = 0; step < kBlowUpSteps + kSettleSteps; ++step) {
    const Coefficients k = step < kBlowUpSteps ? kBlowUp : kSettle;
    const float* z = z_.data();
    const float* gram = gram_.data();
    // S = Z^T Z
    matmul.run({.m = n,
                .n = n,
                .k = m,
                .a = z,
                .a_stride = n,
                .a_transposed = true,
                .b = z,
                .b_stride = n,
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
    // Z <- Z T + a Z
    matmul.run({.m = m,
                .n = n,
                .k = n,
                .a = z,
                .a_stride = n,
                .b = factor_.data(),
                .b_stride = n,
                .c = next_.data(),
                .c_stride = n,
                .add_scale = k.a,
                .add = z,
                .b_symmetric = true},
               precision_);
    std::swap(z_, next_);
  }
  if (wide) {
    transpose(z_.data(), m, n, x);
  } else {
    std::memcpy(x, z_.data(), static_cast<std::size_t>(n * m) * sizeof(float));
  }
}

}  // namespace hadal
