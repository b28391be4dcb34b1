// The ops between the matrices at the shapes of V4-Flash, for one token and for a chunk of 512: the reference
// against the kernels. Bytes are those that an op must read and write, once.
#include <string>
#include <thread>

#include <benchmark/benchmark.h>

#include "base/rng.h"
#include "engine/sampler.h"
#include "ops/backend.h"

namespace hadal {
namespace {

constexpr std::int64_t kDim = 4096, kStreams = 4, kHeads = 64, kHeadDim = 512, kRope = 64, kExperts = 256;

std::vector<float> uniform(std::int64_t n, float scale = 1) {
  const Philox random(1, 0);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = scale * (2 * static_cast<float>(random.uniform(i)) - 1);
  }
  return out;
}

// Runs `op(backend)` on the reference or on the kernels of the best instruction set.
template <class Op>
void run(benchmark::State& state, double bytes, Op&& op) {
  static ThreadPool pool;
  const auto backend = std::move(*make_backend(state.range(0) != 0 ? "cpu" : "ref", "", pool));
  state.SetLabel(std::string(backend->name()));
  for (auto _ : state) op(*backend);
  state.counters["GB/s"] = benchmark::Counter(bytes / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}
double floats(std::int64_t n) {
  return 4 * static_cast<double>(n);
}

void rms_norm(benchmark::State& state) {
  const std::int64_t n = state.range(1);
  auto x = uniform(n * kDim);
  const auto w = uniform(kDim);
  run(state, floats(2 * n * kDim), [&](Backend& backend) {
    backend.run(RmsNormParams{n, kDim, x.data(), w.data(), 1e-6F, x.data()});
  });
}
void rms_norm_heads(benchmark::State& state) {
  const std::int64_t n = state.range(1) * kHeads;
  auto x = uniform(n * kHeadDim);
  run(state, floats(2 * n * kHeadDim), [&](Backend& backend) {
    backend.run(RmsNormParams{n, kHeadDim, x.data(), nullptr, 1e-6F, x.data()});
  });
}
void rope(benchmark::State& state) {
  const std::int64_t n = state.range(1);
  auto x = uniform(n * kHeads * kHeadDim);
  const std::vector<float> cos(static_cast<std::size_t>(n * kRope / 2), 0.6F), sin(cos.size(), 0.8F);
  run(state, floats(2 * n * kHeads * kRope), [&](Backend& backend) {
    backend.run(RopeParams{n, kHeads, kHeadDim, kRope, cos.data(), sin.data(), false, x.data()});
  });
}
void quantise_kv(benchmark::State& state) {
  const std::int64_t n = state.range(1);
  auto x = uniform(n * kHeadDim);
  run(state, floats(2 * n * (kHeadDim - kRope)), [&](Backend& backend) {
    backend.run(QuantiseParams{QuantiseParams::Format::e4m3_64, n, kHeadDim, kHeadDim - kRope, x.data()});
  });
}
void quantise_index_q(benchmark::State& state) {
  const std::int64_t n = state.range(1) * kHeads;
  auto x = uniform(n * 128);
  run(state, floats(2 * n * 128), [&](Backend& backend) {
    backend.run(QuantiseParams{QuantiseParams::Format::e2m1_32, n, 128, 128, x.data()});
  });
}
void hadamard(benchmark::State& state) {
  const std::int64_t n = state.range(1) * kHeads;
  auto x = uniform(n * 128);
  run(state, floats(2 * n * 128), [&](Backend& backend) { backend.run(HadamardParams{n, 128, x.data()}); });
}
// The blocks that `n` tokens complete; one block for one token.
void compress(benchmark::State& state, std::int64_t ratio) {
  const std::int64_t blocks = std::max<std::int64_t>(1, state.range(1) / ratio);
  const bool overlap = ratio == 4;
  const std::int64_t size = blocks * ratio * kHeadDim * (overlap ? 2 : 1);
  const auto values = uniform(size), gates = uniform(size, 4);
  auto out = uniform(blocks * kHeadDim);
  run(state, floats(2 * size), [&](Backend& backend) {
    backend.run(
        CompressParams{blocks, ratio, kHeadDim, overlap, false, values.data(), gates.data(), out.data()});
  });
}
void compress_4(benchmark::State& state) {
  compress(state, 4);
}
void compress_128(benchmark::State& state) {
  compress(state, 128);
}

struct HyperConnection {
  explicit HyperConnection(std::int64_t tokens)
      : n(tokens),
        streams(uniform(n * kStreams * kDim)),
        mix(uniform(n * 24, 10)),
        scale(uniform(3)),
        base(uniform(24)),
        pre(uniform(n * 4)),
        post(uniform(n * 4, 0.5F)),
        comb(uniform(n * 16, 0.25F)),
        x(uniform(n * kDim)) {}
  std::int64_t n;
  std::vector<float> streams, mix, scale, base, pre, post, comb, x;
};
void hc_pre(benchmark::State& state) {
  HyperConnection h(state.range(1));
  run(state, floats(h.n * 5 * kDim), [&](Backend& backend) {
    backend.run(HcPreParams{h.n, kStreams, kDim, h.streams.data(), h.mix.data(), h.scale.data(),
                            h.base.data(), 20, 1e-6F, 1e-6F, h.pre.data(), h.post.data(), h.comb.data(),
                            h.x.data()});
  });
}
void hc_post(benchmark::State& state) {
  HyperConnection h(state.range(1));
  run(state, floats(h.n * 9 * kDim), [&](Backend& backend) {
    backend.run(
        HcPostParams{h.n, kStreams, kDim, h.x.data(), h.post.data(), h.comb.data(), h.streams.data()});
  });
}
void hc_head(benchmark::State& state) {
  HyperConnection h(state.range(1));
  run(state, floats(h.n * 5 * kDim), [&](Backend& backend) {
    backend.run(HcHeadParams{h.n, kStreams, kDim, h.streams.data(), h.mix.data(), h.scale.data(),
                             h.base.data(), 1e-6F, 1e-6F, h.x.data()});
  });
}
void gate(benchmark::State& state) {
  const std::int64_t n = state.range(1);
  const auto logits = uniform(n * kExperts, 4), bias = uniform(kExperts);
  auto scores = logits, weights = uniform(n * 6);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(n * 6));
  run(state, floats(2 * n * kExperts), [&](Backend& backend) {
    backend.run(GateParams{n,
                           kExperts,
                           6,
                           logits.data(),
                           bias.data(),
                           nullptr,
                           {},
                           1.5F,
                           scores.data(),
                           indices.data(),
                           weights.data()});
  });
}
void embed(benchmark::State& state) {
  const std::int64_t n = state.range(1), vocab = 1024;
  const std::vector<std::uint16_t> table(static_cast<std::size_t>(vocab * kDim), 0x3f80);
  const Linear weight{vocab, kDim, Linear::Format::bf16, reinterpret_cast<const std::byte*>(table.data())};
  std::vector<std::int32_t> tokens;
  for (std::int64_t t = 0; t < n; ++t) tokens.push_back(static_cast<std::int32_t>(t * 577 % vocab));
  auto out = uniform(n * kStreams * kDim);
  run(state, floats(n * kDim) / 2 + floats(n * kStreams * kDim), [&](Backend& backend) {
    backend.run(EmbedParams{tokens, &weight, kStreams, out.data()});
  });
}

// {0: reference, 1: kernels} x tokens
#define HADAL_BENCHMARK(op) \
  BENCHMARK(op)->ArgsProduct({{0, 1}, {1, 512}})->ArgNames({"cpu", "T"})->UseRealTime()
HADAL_BENCHMARK(rms_norm);
HADAL_BENCHMARK(rms_norm_heads);
HADAL_BENCHMARK(rope);
HADAL_BENCHMARK(quantise_kv);
HADAL_BENCHMARK(quantise_index_q);
HADAL_BENCHMARK(hadamard);
HADAL_BENCHMARK(compress_4);
HADAL_BENCHMARK(compress_128);
HADAL_BENCHMARK(hc_pre);
HADAL_BENCHMARK(hc_post);
HADAL_BENCHMARK(hc_head);
HADAL_BENCHMARK(gate);
HADAL_BENCHMARK(embed);
#undef HADAL_BENCHMARK

// Arguments: temperature in tenths, top-k, top-p in percent, min-p in percent.
void sample(benchmark::State& state) {
  const auto logits = uniform(129280, 6);
  SamplingOptions options;
  options.temperature = static_cast<double>(state.range(0)) / 10;
  options.top_k = state.range(1);
  options.top_p = static_cast<double>(state.range(2)) / 100;
  options.min_p = static_cast<double>(state.range(3)) / 100;
  Sampler sampler;
  std::uint64_t position = 0;
  for (auto _ : state) benchmark::DoNotOptimize(sampler.sample(logits, options, position++).token);
}
BENCHMARK(sample)
    ->ArgNames({"t", "k", "p", "min_p"})
    ->Args({0, 0, 100, 0})
    ->Args({10, 0, 100, 0})
    ->Args({10, 50, 100, 0})
    ->Args({10, 0, 95, 0})
    ->Args({10, 0, 100, 5});

// An empty loop over as many chunks as there are threads: what handing work over costs.
void parallel_for(benchmark::State& state) {
  ThreadPool pool;
  for (auto _ : state) {
    pool.parallel_for(pool.size(), 1,
                      [](std::int64_t begin, std::int64_t) { benchmark::DoNotOptimize(begin); });
  }
}
BENCHMARK(parallel_for)->UseRealTime();

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
