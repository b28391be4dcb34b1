// Linears at V4-Flash's shapes, over weights that no cache holds: one token (bandwidth), a few, many
// (arithmetic).
//   gemm_bench --benchmark_filter=fp4
// of_read, of_f32, of_bf16 and of_int8 are fractions of what this machine does in the same run: a linear read
// with all threads, and multiply-adds or dot products in registers.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include <benchmark/benchmark.h>

#include "base/rng.h"
#include "ops/backend.h"
#include "plan/hardware.h"

namespace hadal {
namespace {

// Of HADAL_ISA, as for the binary; an unknown one ends the bench.
std::unique_ptr<Backend> chosen_backend(ThreadPool& pool) {
  const char* isa = std::getenv("HADAL_ISA");
  auto backend = make_backend("cpu", isa != nullptr ? isa : "", pool);
  if (!backend) {
    std::fprintf(stderr, "gemm_bench: %s\n", backend.error().message().c_str());
    std::exit(1);
  }
  return std::move(*backend);
}

struct Machine {
  ThreadPool pool;
  std::unique_ptr<Backend> backend = chosen_backend(pool);
  ReadBandwidth bandwidth{std::size_t{1} << 30, pool};
  ArithmeticPeaks peaks = measure_arithmetic(pool);
};

Machine& machine() {
  static Machine m;
  return m;
}

// Enough copies of one shape that a pass over them reads 512 MB.
struct Matrices {
  std::vector<Buffer<std::byte>> weights;
  std::vector<Buffer<std::uint8_t>> scales;
  std::vector<Linear> linears;

  Matrices(Linear::Format format, std::int64_t out, std::int64_t in) {
    const Linear shape{out, in, format, nullptr, nullptr};
    const auto bytes = static_cast<std::size_t>(out * shape.row_bytes());
    const Philox random(1, 0);
    for (std::size_t total = 0; total < (std::size_t{512} << 20); total += bytes) {
      Buffer<std::byte> w = Buffer<std::byte>::uninitialised(bytes);
      for (std::size_t i = 0; i + 16 <= bytes; i += 16) {
        auto words = random.block(i);
        for (auto& word : words) word &= 0xbfbfbfbf;  // finite in every format
        std::memcpy(w.data() + i, words.data(), 16);
      }
      Buffer<std::uint8_t> s(static_cast<std::size_t>(out * in / 32));
      for (std::size_t i = 0; i < s.size(); ++i) s[i] = static_cast<std::uint8_t>(118 + i % 3);
      linears.push_back({out, in, format, w.data(), s.data()});
      weights.push_back(std::move(w));
      scales.push_back(std::move(s));
    }
  }
};

void linear(benchmark::State& state, Linear::Format format, InputRounding rounding, std::int64_t out,
            std::int64_t in) {
  Machine& m = machine();
  const std::int64_t n = state.range(0);
  static std::map<std::pair<int, std::int64_t>, std::unique_ptr<Matrices>> made;
  auto& matrices = made[{static_cast<int>(format), in}];
  if (matrices == nullptr) {
    made.clear();
    made[{static_cast<int>(format), in}] = std::make_unique<Matrices>(format, out, in);
  }
  const Matrices& w = *made[{static_cast<int>(format), in}];
  Buffer<float> x(static_cast<std::size_t>(n * in)), y(static_cast<std::size_t>(n * out));
  const Philox random(2, 0);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random.uniform(i) - 0.5);
  std::size_t at = 0;
  double read = 0;
  std::int64_t reads = 0;
  if (rounding == InputRounding::int8) {
    for (const Linear& each : w.linears) m.backend->prepare(each, rounding);
  }
  for (auto _ : state) {
    m.backend->run(LinearParams{n, x.data(), &w.linears[at], 1, rounding, y.data()});
    at = (at + 1) % w.linears.size();
    if (at % 16 == 0) {
      state.PauseTiming();
      read += m.bandwidth.measure();
      ++reads;
      state.ResumeTiming();
    }
  }
  const Linear& shape = w.linears[0];
  double bytes = static_cast<double>(out * shape.row_bytes());
  if (format == Linear::Format::fp4) bytes += static_cast<double>(out * in / 32);
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes / 1e9, Counter::kIsIterationInvariantRate);
  const double flops = 2.0 * static_cast<double>(n * out * in) / 1e9;
  state.counters["GFLOP/s"] = Counter(flops, Counter::kIsIterationInvariantRate);
  if (reads > 0)
    state.counters["of_read"] =
        Counter(bytes / 1e9 / (read / static_cast<double>(reads)), Counter::kIsIterationInvariantRate);
  const auto of_peak = [&](const char* name, double peak) {
    if (peak > 0) state.counters[name] = Counter(flops / peak, Counter::kIsIterationInvariantRate);
  };
  of_peak("of_f32", m.peaks.f32_gflops);
  of_peak("of_bf16", m.peaks.bf16_gflops);
  of_peak("of_int8", m.peaks.int8_gops);
}

#define LINEAR(name, format, rounding, out, in)                                             \
  BENCHMARK_CAPTURE(linear, name, Linear::Format::format, InputRounding::rounding, out, in) \
      ->Arg(1)                                                                              \
      ->Arg(2)                                                                              \
      ->Arg(4)                                                                              \
      ->Arg(12)                                                                             \
      ->Arg(96)                                                                             \
      ->Arg(512)                                                                            \
      ->MinTime(0.4)                                                                        \
      ->UseRealTime()                                                                       \
      ->Unit(benchmark::kMicrosecond)
LINEAR(fp4_w1, fp4, e4m3, 2048, 4096);
LINEAR(fp4_w2, fp4, e4m3, 4096, 2048);
LINEAR(fp4_w1_int8, fp4, int8, 2048, 4096);
LINEAR(fp8_wo_b, fp8, e4m3, 4096, 8192);
LINEAR(fp8_wo_b_int8, fp8, int8, 4096, 8192);
LINEAR(fp8_wq_b, fp8, e4m3, 32768, 1024);
LINEAR(fp8_wo_a, fp8, none, 8192, 4096);
LINEAR(bf16_wgate, bf16, none, 1024, 4096);

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
