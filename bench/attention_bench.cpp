// Core attention at the published shapes, on all threads: GFLOP/s (4 heads dim per row and token) and the
// share of this machine's float32 multiply-add peak, measured beside it. Rows lie in pages as the state keeps
// them.
//
//     attention_bench [--benchmark_filter=hca]      HADAL_ISA and HADAL_THREADS as for hadal
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include "model/sequence_state.h"
#include "ops/backend.h"
#include "plan/hardware.h"

namespace hadal {
namespace {

struct Machine {
  ThreadPool pool{[] {
    const char* const threads = std::getenv("HADAL_THREADS");
    return threads != nullptr ? std::atoi(threads) : 0;
  }()};
  std::unique_ptr<Backend> backend = [this] {
    const char* const isa = std::getenv("HADAL_ISA");
    auto made = make_backend("cpu", isa != nullptr ? isa : "", pool);
    if (!made) {
      std::fprintf(stderr, "%s\n", made.error().message().c_str());
      std::exit(1);
    }
    return std::move(*made);
  }();
};
Machine& machine() {
  static Machine one;
  return one;
}

// One block of Flash (the fourth: HCA; the third: CSA) at a depth.
struct Block {
  Block(AttentionKind kind, StateFormat format, std::int64_t context)
      : config(*cut_config(*preset_config("flash"), 4, 8)), layout(config, format), state(layout) {
    state.fill_synthetic(context, 1);
    for (const BlockStateLayout& block : layout.blocks) {
      if (block.kind == kind) wanted = &block;
    }
  }

  Config config;
  StateLayout layout;
  SequenceState state;
  const BlockStateLayout* wanted = nullptr;
};

void attend(benchmark::State& state, AttentionKind kind, StateFormat format, std::int64_t context,
            std::int64_t n_tokens) {
  Block block(kind, format, context);
  const std::int64_t heads = block.config.num_attention_heads, dim = block.layout.row.dim;
  const std::int64_t ratio = block.wanted->tail.ratio, k = block.config.index_topk;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  const auto draw = [&](std::int64_t n) {
    std::vector<float> out(static_cast<std::size_t>(n));
    for (float& x : out) x = normal(generator);
    return out;
  };
  const auto q = draw(n_tokens * heads * dim), kv = draw(n_tokens * dim), sink = draw(heads);
  std::vector<float> out(q.size());
  std::vector<std::int64_t> visible;
  std::vector<std::int32_t> selected;
  std::int64_t rows = 0;
  for (std::int64_t t = context; t < context + n_tokens; ++t) {
    const std::int64_t seen = context / ratio;  // rows of the batch's own tokens are not made here
    visible.push_back(seen);
    rows += std::min(block.layout.window_rows, t + 1);
    if (kind == AttentionKind::hca) {
      rows += seen;
      continue;
    }
    const std::int64_t chosen = std::min(k, seen);
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t stratum = seen / std::max<std::int64_t>(1, chosen);
      selected.push_back(i < chosen ? static_cast<std::int32_t>(i * stratum + generator() % stratum) : -1);
    }
    rows += chosen;
  }
  const AttentionSegment segment{0, n_tokens, context, block.state.fixed(block.wanted->window),
                                 block.state.paged_rows(block.wanted->rows)};
  const SparseAttentionParams params{n_tokens,
                                     heads,
                                     block.layout.row,
                                     q.data(),
                                     kv.data(),
                                     {&segment, 1},
                                     block.layout.window_rows,
                                     visible,
                                     k,
                                     kind == AttentionKind::csa ? selected.data() : nullptr,
                                     sink.data(),
                                     out.data()};
  const double peak = measure_arithmetic(machine().pool).f32_gflops;
  for (auto _ : state) machine().backend->run(params);
  const double flops =
      4.0 * static_cast<double>(heads * dim * rows) * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(flops / 1e9, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(flops / 1e9 / peak, benchmark::Counter::kIsRate);
  state.counters["rows/token"] = static_cast<double>(rows) / static_cast<double>(n_tokens);
}

constexpr std::int64_t kMillion = std::int64_t{1} << 20;

// The window alone and full CSA lists; dense HCA at the end of the context, where a row has a page of its
// own.
void csa_decode(benchmark::State& state, StateFormat format) {
  attend(state, AttentionKind::csa, format, 65536, 1);
}
void csa_prefill(benchmark::State& state, StateFormat format) {
  attend(state, AttentionKind::csa, format, 65536, 64);
}
void hca_decode(benchmark::State& state, StateFormat format) {
  attend(state, AttentionKind::hca, format, format == StateFormat::f32 ? kMillion / 8 : kMillion, 1);
}
void hca_prefill(benchmark::State& state, StateFormat format) {
  attend(state, AttentionKind::hca, format, format == StateFormat::f32 ? kMillion / 8 : kMillion, 8);
}
BENCHMARK_CAPTURE(csa_decode, compact, StateFormat::compact)->UseRealTime();
BENCHMARK_CAPTURE(csa_decode, f32, StateFormat::f32)->UseRealTime();
BENCHMARK_CAPTURE(csa_prefill, compact, StateFormat::compact)->UseRealTime();
BENCHMARK_CAPTURE(csa_prefill, f32, StateFormat::f32)->UseRealTime();
BENCHMARK_CAPTURE(hca_decode, compact, StateFormat::compact)->UseRealTime();
BENCHMARK_CAPTURE(hca_decode, f32_at_128K, StateFormat::f32)->UseRealTime();
BENCHMARK_CAPTURE(hca_prefill, compact, StateFormat::compact)->UseRealTime();

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
