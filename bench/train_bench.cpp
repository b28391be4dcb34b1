// One training step without the optimizer, losses and gradients of a batch, on all threads: tokens per
// second, GFLOP/s of the matrix products (attention not counted) and their share of this machine's BF16 peak,
// measured beside it.
//
//     train_bench [--benchmark_filter=small]      HADAL_THREADS as for hadal
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <benchmark/benchmark.h>

#include "base/rng.h"
#include "train/newton_schulz.h"
#include "train/objective.h"

namespace hadal {
namespace {

// Three layers, sliding, CSA and HCA, and an MTP block over bytes: 8.5 million parameters.
Config small() {
  Config c;
  c.vocab_size = 256;
  c.hidden_size = 256;
  c.num_hidden_layers = 3;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = 4096;
  c.num_attention_heads = 4;
  c.head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 128;
  c.sliding_window = 64;
  c.compress_ratios = {0, 4, 32, 0};
  c.index_n_heads = 4;
  c.index_head_dim = 64;
  c.index_topk = 16;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 224;
  c.num_hash_layers = 1;
  c.routed_scaling_factor = 1.5;
  return c;
}

ParameterSet random_weights(const Config& config) {
  ParameterSet set(config);
  for (const Parameter& p : set.parameters()) {
    const Philox rng(1, static_cast<std::uint64_t>(p.offset));
    const float spread = 1.7F / std::sqrt(static_cast<float>(p.info.shape.back()));
    const auto values = set[p];
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = p.info.role == Role::norm ? 1.0F : (2 * static_cast<float>(rng.uniform(i)) - 1) * spread;
    }
    if (p.info.role != Role::hash_table) continue;
    const auto table = set.table(p);
    for (std::size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<std::int32_t>(i % static_cast<std::size_t>(config.n_routed_experts));
  }
  return set;
}

void step(benchmark::State& state, Precision precision, bool sparse) {
  const char* const threads = std::getenv("HADAL_THREADS");
  ThreadPool pool(threads != nullptr ? std::atoi(threads) : 0);
  const Config config = small();
  ObjectiveOptions options;
  options.precision = precision;
  options.sparse = options.index_loss = sparse;
  auto objective = Objective::create(config, pool, options);
  const ParameterSet weights = random_weights(config);
  ParameterSet gradients(config);
  const std::int64_t size = state.range(0), length = state.range(1);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(size * (length + 2)));
  const Philox rng(2, 0);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(rng.block(i)[0] % 256);
  const TrainingBatch batch{size, length, tokens, {}, {}};
  // The first batch says how much memory it takes, the second touches it.
  for (int i = 0; i < 2; ++i) objective->forward_backward(weights, batch, 1, gradients);
  const std::int64_t flops_before = objective->matmul_flops();
  for (auto _ : state) {
    const Losses losses = objective->forward_backward(weights, batch, 1, gradients);
    benchmark::DoNotOptimize(losses.total);
  }
  const auto runs = static_cast<double>(state.iterations());
  state.counters["tok/s"] =
      benchmark::Counter(runs * static_cast<double>(size * length), benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(objective->matmul_flops() - flops_before) / 1e9, benchmark::Counter::kIsRate);
  state.counters["MB"] = static_cast<double>(objective->memory()) / 1e6;
}

BENCHMARK_CAPTURE(step, small_bf16, Precision::bf16, false)
    ->Args({4, 128})
    ->Args({16, 128})
    ->Args({4, 512})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, small_bf16_sparse, Precision::bf16, true)
    ->Args({4, 512})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, small_f32, Precision::f32, false)
    ->Args({4, 128})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// The products alone, as the model has them: y = W x of 512 tokens.
void product(benchmark::State& state, Precision precision) {
  ThreadPool pool(0);
  Matmul matmul(pool);
  const std::int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  std::vector<float> a(static_cast<std::size_t>(m * k), 0.5F), b(static_cast<std::size_t>(n * k), 0.25F);
  std::vector<float> c(static_cast<std::size_t>(m * n));
  for (auto _ : state)
    matmul.run({m, n, k, a.data(), k, false, b.data(), k, true, c.data(), n, false}, precision);
  state.counters["GFLOP/s"] =
      benchmark::Counter(static_cast<double>(matmul.flops()) / 1e9, benchmark::Counter::kIsRate);
}
BENCHMARK_CAPTURE(product, bf16, Precision::bf16)
    ->Args({512, 512, 512})
    ->Args({512, 256, 128})
    ->Args({2048, 1024, 1024})
    ->UseRealTime();
BENCHMARK_CAPTURE(product, f32, Precision::f32)->Args({512, 512, 512})->UseRealTime();

// Newton-Schulz of one matrix on one thread, as Muon does most of them.
void newton_schulz(benchmark::State& state) {
  ThreadPool pool(1);
  Matmul matmul(pool);
  NewtonSchulz orthogonalise(Precision::bf16);
  const std::int64_t rows = state.range(0), columns = state.range(1);
  std::vector<float> x(static_cast<std::size_t>(rows * columns)), y;
  const Philox rng(3, 0);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(rng.uniform(i) - 0.5);
  for (auto _ : state) {
    y = x;
    orthogonalise.run(y.data(), rows, columns, matmul);
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * newton_schulz_flops(rows, columns) / 1e9,
                         benchmark::Counter::kIsRate);
}
BENCHMARK(newton_schulz)
    ->Args({64, 256})
    ->Args({256, 64})
    ->Args({96, 256})
    ->Args({128, 256})
    ->Args({240, 256})
    ->Args({256, 256})
    ->Args({512, 1024});

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
