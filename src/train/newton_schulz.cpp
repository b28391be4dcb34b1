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

// In double and in this order, whatever the threads.
double frobenius_norm(const float* x, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return std::sqrt(sum);
}

// out [columns, rows] = scale * x^T, by squares that fit in the first-level cache.
void transpose(const float* x, std::int64_t rows, std::int64_t columns, float scale, float* out) {
  constexpr std::int64_t kSide = 32;
  for (std::int64_t i0 = 0; i0 < rows; i0 += kSide) {
    for (std::int64_t j0 = 0; j0 < columns; j0 += kSide) {
      for (std::int64_t j = j0; j < std::min(j0 + kSide, columns); ++j) {
        for (std::int64_t i = i0; i < std::min(i0 + kSide, rows); ++i)
          out[j * rows + i] = scale * x[i * columns + j];
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

void NewtonSchulz::run(float* x, std::int64_t rows, std::int64_t columns, ThreadPool* pool) {
  const double norm = frobenius_norm(x, rows * columns);
  if (norm == 0) return;
  const bool tall = rows > columns;
  const std::int64_t n = tall ? columns : rows, m = tall ? rows : columns;
  reserve(y_, n * m);
  reserve(next_, n * m);
  reserve(gram_, n * n);
  reserve(factor_, n * n);
  // 1 / norm is at most 2^149, beyond float32: a norm under 2^-100 is scaled in two steps.
  const auto scale = [&](float* out, const auto& source) {
    const double inverse = 1 / norm;
    for (std::int64_t i = 0; i < n * m; ++i)
      out[i] = static_cast<float>(static_cast<double>(source(i)) * inverse);
  };
  if (tall) {
    transpose(x, rows, columns, 1, next_.data());
    scale(y_.data(), [&](std::int64_t i) { return next_[static_cast<std::size_t>(i)]; });
  } else {
    scale(y_.data(), [&](std::int64_t i) { return x[i]; });
  }
  for (int step = 0; step < kBlowUpSteps + kSettleSteps; ++step) {
    const Coefficients k = step < kBlowUpSteps ? kBlowUp : kSettle;
    // S = Y Y^T
    product_.run({.a = y_.data(),
                  .b = y_.data(),
                  .b_transposed = true,
                  .c = gram_.data(),
                  .rows = n,
                  .columns = n,
                  .depth = m,
                  .symmetric = true},
                 pool);
    // T = b S + c S S
    product_.run({.a = gram_.data(),
                  .b = gram_.data(),
                  .c = factor_.data(),
                  .rows = n,
                  .columns = n,
                  .depth = n,
                  .alpha = k.c,
                  .beta = k.b,
                  .add = gram_.data(),
                  .symmetric = true},
                 pool);
    // Y <- a Y + T Y
    product_.run({.a = factor_.data(),
                  .b = y_.data(),
                  .c = next_.data(),
                  .rows = n,
                  .columns = m,
                  .depth = n,
                  .alpha = 1,
                  .beta = k.a,
                  .add = y_.data()},
                 pool);
    std::swap(y_, next_);
  }
  if (tall) {
    transpose(y_.data(), n, m, 1, x);
  } else {
    std::memcpy(x, y_.data(), static_cast<std::size_t>(n * m) * sizeof(float));
  }
}

}  // namespace hadal
