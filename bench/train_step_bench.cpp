// One training step of a recipe's model, taken apart: forward, backward, Newton-Schulz and the rest
// (momentum, weights, AdamW, norms), with floating-point operations as a share of this machine's peak in
// BF16 or, where it has no such products, float32, measured beside it. Symmetric products of Newton-Schulz
// count half, attention counts nothing.
//
//     train_step_bench recipes/shakespeare.json [SEQUENCES...]     HADAL_THREADS as for hadal
//
// For every number of sequences a step; the best of several tries of each part.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/rng.h"
#include "plan/hardware.h"
#include "train/initial_weights.h"
#include "train/objective.h"
#include "train/optimizer.h"
#include "train/recipe.h"

namespace hadal {
namespace {

constexpr int kTries = 5;

template <class Body>
double best_seconds(Body&& body) {
  double best = 1e30;
  for (int i = 0; i < kTries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// The orthogonalisations of a step, dealt out as Muon does: the costly ones first, one to a thread.
class Orthogonalisations {
 public:
  Orthogonalisations(const TrainingRecipe& recipe, ThreadPool& pool)
      : pool_(pool), alone_(1), gradients_(recipe.config) {
    const Philox rng(3, 0);
    for (std::size_t i = 0; i < gradients_.values().size(); ++i)
      gradients_.values()[i] = static_cast<float>(rng.uniform(i) - 0.5);
    for (const Parameter& p : gradients_.parameters()) {
      if (update_rule(p.info.role) != UpdateRule::muon || is_indexer(p.info)) continue;
      const std::int64_t parts = p.info.name.ends_with(".wo_a.weight") ? recipe.config.o_groups : 1;
      const std::int64_t rows = p.info.shape[0] / parts, columns = p.info.shape[1];
      for (std::int64_t g = 0; g < parts; ++g) {
        matrices_.push_back({gradients_.values().data() + p.offset + g * rows * columns, rows, columns});
        flops_ += newton_schulz_flops(rows, columns);
      }
    }
    std::stable_sort(matrices_.begin(), matrices_.end(), [](const Matrix& a, const Matrix& b) {
      return newton_schulz_flops(a.rows, a.columns) > newton_schulz_flops(b.rows, b.columns);
    });
    for (int i = 0; i < pool.size(); ++i) workers_.emplace_back(alone_, recipe.optimizer.newton_schulz);
  }
  double flops() const { return flops_; }
  const ParameterSet& gradients() const { return gradients_; }
  void run() {
    const auto n = static_cast<std::int64_t>(matrices_.size());
    std::atomic<std::int64_t> next{0};
    pool_.parallel_for(pool_.size(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto self = static_cast<std::size_t>(begin); self < static_cast<std::size_t>(end); ++self) {
        for (std::int64_t i = next++; i < n; i = next++) {
          const Matrix& m = matrices_[static_cast<std::size_t>(i)];
          workers_[self].newton_schulz.run(m.x, m.rows, m.columns, workers_[self].matmul);
        }
      }
    });
  }

 private:
  struct Matrix {
    float* x;
    std::int64_t rows, columns;
  };
  struct Worker {
    Worker(ThreadPool& pool, Precision precision) : matmul(pool), newton_schulz(precision) {}
    Matmul matmul;
    NewtonSchulz newton_schulz;
  };
  ThreadPool& pool_;
  ThreadPool alone_;
  ParameterSet gradients_;
  std::vector<Matrix> matrices_;
  std::vector<Worker> workers_;
  double flops_ = 0;
};

int run(const char* path, const std::vector<std::int64_t>& sizes) {
  const auto recipe = load_recipe(path);
  if (!recipe) {
    std::fprintf(stderr, "%s\n", recipe.error().message().c_str());
    return 1;
  }
  const char* const threads = std::getenv("HADAL_THREADS");
  ThreadPool pool(threads != nullptr ? std::atoi(threads) : 0);
  double peak = 0;
  const char* format = "float32";
  for (int i = 0; i < 3; ++i) {
    const ArithmeticPeaks peaks = measure_arithmetic(pool);
    peak = std::max({peak, peaks.f32_gflops, peaks.bf16_gflops});
    if (peaks.bf16_gflops > 0) format = "BF16";
  }
  const Config& config = recipe->config;
  ObjectiveOptions options;
  options.precision = recipe->precision;
  auto objective = Objective::create(config, pool, options);
  if (!objective) {
    std::fprintf(stderr, "%s\n", objective.error().message().c_str());
    return 1;
  }
  ParameterSet weights = initial_weights(*recipe, pool);
  std::int64_t parameters = 0;
  for (const Parameter& p : weights.parameters()) parameters += p.size;
  Orthogonalisations orthogonalisations(*recipe, pool);
  OptimizerOptions optimizer_options;
  optimizer_options.muon_options.precision = recipe->optimizer.newton_schulz;
  Optimizer optimizer(config, optimizer_options, pool);
  const double update = best_seconds([&] {
    const std::vector<double> squares = gradient_squares(orthogonalisations.gradients(), pool);
    optimizer.step(weights, orthogonalisations.gradients(), Trained::all_but_indexer, 1e-9, squares[0]);
  });
  const double newton_schulz = best_seconds([&] { orthogonalisations.run(); });
  const std::int64_t length = recipe->stages[0].length;
  std::printf("%lld parameters, sequences of %lld, %d threads; %s peak %.0f GFLOP/s\n",
              static_cast<long long>(parameters), static_cast<long long>(length), pool.size(), format, peak);
  std::printf("Newton-Schulz: %.1f GFLOP in %.1f ms, %.0f%% of the peak\n", orthogonalisations.flops() / 1e9,
              newton_schulz * 1e3, 100 * orthogonalisations.flops() / 1e9 / newton_schulz / peak);
  std::printf("%8s %9s %9s %9s %9s %9s %9s %9s %7s\n", "tokens", "forward", "backward", "N-Schulz", "rest",
              "step, ms", "tokens/s", "GFLOP", "share");
  for (const std::int64_t size : sizes) {
    std::vector<std::int32_t> tokens(
        static_cast<std::size_t>(size * (length + 1 + config.num_nextn_predict_layers)));
    const Philox rng(2, 0);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>(rng.uniform(i) * static_cast<double>(config.vocab_size));
    const TrainingBatch batch{size, length, tokens, {}, {}};
    ParameterSet gradients(config);
    for (int i = 0; i < 2; ++i) objective->forward_backward(weights, batch, 1, gradients);
    const std::int64_t before = objective->matmul_flops();
    objective->forward_backward(weights, batch, 1, gradients);
    const auto model_flops = static_cast<double>(objective->matmul_flops() - before);
    const double both = best_seconds([&] {
      gradients.clear(pool);
      objective->forward_backward(weights, batch, 1, gradients);
    });
    const double forward = best_seconds([&] { objective->evaluate(weights, batch); });
    const double step = both + update, flops = (model_flops + orthogonalisations.flops()) / 1e9;
    std::printf("%8lld %9.1f %9.1f %9.1f %9.1f %9.1f %9.0f %9.1f %6.0f%%\n",
                static_cast<long long>(size * length), forward * 1e3, (both - forward) * 1e3,
                newton_schulz * 1e3, (update - newton_schulz) * 1e3, step * 1e3,
                static_cast<double>(size * length) / step, flops, 100 * flops / step / peak);
  }
  return 0;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (argc < 2) {
    std::fprintf(stderr, "train_step_bench RECIPE [SEQUENCES...]\n");
    return 2;
  }
  std::vector<std::int64_t> sizes;
  for (int i = 2; i < argc; ++i) sizes.push_back(std::atoll(argv[i]));
  if (sizes.empty()) sizes = {4, 8, 16, 32};
  return hadal::run(argv[1], sizes);
}
