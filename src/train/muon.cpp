#include "train/muon.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

namespace hadal {
namespace {

// Above this share of all work, divided by the number of threads, a matrix alone would keep the others
// waiting.
constexpr double kLargeShare = 0.5;
constexpr std::int64_t kGrain = 1 << 14;

}  // namespace

Muon::Muon(const MuonOptions& options, ThreadPool& pool)
    : options_(options),
      pool_(pool),
      alone_(std::make_unique<ThreadPool>(1)),
      together_(pool, options.precision) {
  for (int i = 0; i < pool.size(); ++i) workers_.emplace_back(*alone_, options.precision);
}

void Muon::step_matrix(const MuonMatrix& matrix, float learning_rate, float gradient_scale,
                       Worker& worker) const {
  const std::int64_t n = matrix.rows * matrix.columns;
  if (static_cast<std::int64_t>(worker.update.size()) < n)
    worker.update = Buffer<float>::uninitialised(static_cast<std::size_t>(n));
  float* const u = worker.update.data();
  const float mu = options_.momentum;
  worker.pool.parallel_for(n, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float g = matrix.gradient[i] * gradient_scale;
      const float m = mu * matrix.momentum[i] + g;
      matrix.momentum[i] = m;
      u[i] = mu * m + g;
    }
  });
  worker.newton_schulz.run(u, matrix.rows, matrix.columns, worker.matmul);
  const float keep = 1 - learning_rate * options_.weight_decay;
  const float rate =
      learning_rate * options_.gamma *
      static_cast<float>(std::sqrt(static_cast<double>(std::max(matrix.rows, matrix.columns))));
  worker.pool.parallel_for(n, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) matrix.weight[i] = matrix.weight[i] * keep - rate * u[i];
  });
}

void Muon::step(std::span<const MuonMatrix> matrices, float learning_rate, float gradient_scale) {
  double total = 0;
  for (const MuonMatrix& matrix : matrices) total += matrix.flops();
  std::vector<std::size_t> order(matrices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return matrices[a].flops() > matrices[b].flops(); });
  const double large = kLargeShare * total / pool_.size();
  std::size_t next = 0;
  if (pool_.size() > 1) {
    for (; next < order.size() && matrices[order[next]].flops() > large; ++next)
      step_matrix(matrices[order[next]], learning_rate, gradient_scale, together_);
  }
  // A queue: every thread takes the costliest matrix that is left.
  std::atomic<std::size_t> queue{next};
  pool_.parallel_for(pool_.size(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t self = begin; self < end; ++self) {
      for (std::size_t i = queue++; i < order.size(); i = queue++)
        step_matrix(matrices[order[i]], learning_rate, gradient_scale,
                    workers_[static_cast<std::size_t>(self)]);
    }
  });
}

}  // namespace hadal
