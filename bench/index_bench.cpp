// The lightning indexer of Flash (64 heads of 128, the best 512 rows) over FP4 rows: operations per second of
// q . row, and their share of the int8 peak that is measured right before and after. "rows32" is the path
// over float32 rows of exact numerics, for comparison.
#include <algorithm>
#include <cstdlib>
#include <random>

#include <benchmark/benchmark.h>

#include "ops/backend.h"
#include "ops/ref/ref.h"
#include "plan/hardware.h"

namespace hadal {
namespace {

constexpr std::int64_t kHeads = 64, kDim = 128, kBest = 512, kPerPage = 32;

std::vector<float> rounded_normal(std::int64_t rows, ThreadPool& pool) {
  std::mt19937 generator(static_cast<unsigned>(rows));
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> out(static_cast<std::size_t>(rows * kDim));
  for (float& x : out) x = normal(generator);
  ref::quantise({QuantiseParams::Format::e2m1_32, rows, kDim, kDim, out.data()}, pool);
  return out;
}

// Few different pages, so that making them takes no time; each is there in full.
class Rows {
 public:
  Rows(RowFormat format, std::int64_t n, ThreadPool& pool) : shape_{format, kDim, 0} {
    constexpr std::int64_t kDifferent = 61;
    const auto values = rounded_normal(kDifferent * kPerPage, pool);
    const auto bytes = static_cast<std::size_t>(kPerPage * shape_.bytes());
    Buffer<std::byte> different(kDifferent * bytes);
    for (std::int64_t i = 0; i < kDifferent * kPerPage; ++i) {
      store_row(shape_, values.data() + i * kDim,
                different.data() + static_cast<std::size_t>(i / kPerPage) * bytes, i % kPerPage);
    }
    const std::int64_t pages = (n + kPerPage - 1) / kPerPage;
    for (std::int64_t page = 0; page < pages; ++page) {
      storage_.push_back(Buffer<std::byte>::uninitialised(bytes));
      std::copy_n(different.data() + static_cast<std::size_t>(page * 7 % kDifferent) * bytes, bytes,
                  storage_.back().data());
      pages_.push_back(storage_.back().data());
    }
  }
  PagedRows paged() const { return {pages_.data(), 0, kPerPage, shape_}; }

 private:
  RowShape shape_;
  std::vector<Buffer<std::byte>> storage_;
  std::vector<const std::byte*> pages_;
};

// Arguments: tokens, rows that the last of them sees.
void select(benchmark::State& state, RowFormat format) {
  const std::int64_t tokens = state.range(0), n = state.range(1);
  ThreadPool pool;
  const char* isa = std::getenv("HADAL_ISA");
  const auto backend = make_backend("cpu", isa != nullptr ? isa : "", pool);
  if (!backend) return state.SkipWithError(backend.error().message().c_str());
  const auto q = rounded_normal(tokens * kHeads, pool);
  std::vector<float> weights(static_cast<std::size_t>(tokens * kHeads));
  std::mt19937 generator(3);
  for (float& w : weights) w = std::normal_distribution<float>(0, 0.01F)(generator);
  const Rows rows(format, n, pool);
  std::vector<std::int64_t> visible;
  double scored = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    visible.push_back(n - (tokens - 1 - t) / 4);
    scored += static_cast<double>(visible.back());
  }
  std::vector<std::int32_t> indices(static_cast<std::size_t>(tokens * kBest));
  const IndexSelectParams params{tokens,         kHeads,       kDim,    kBest,         q.data(),
                                 weights.data(), rows.paged(), visible, indices.data()};
  (*backend)->run(params);
  double peak = measure_arithmetic(pool).int8_gops;
  for (auto _ : state) (*backend)->run(params);
  peak = std::max(peak, measure_arithmetic(pool).int8_gops);
  const double operations = 2.0 * scored * kHeads * kDim * static_cast<double>(state.iterations()) / 1e9;
  state.counters["GOP/s"] = benchmark::Counter(operations, benchmark::Counter::kIsRate);
  state.counters["int8_peak"] = peak;
  state.counters["of_peak"] = benchmark::Counter(operations / peak, benchmark::Counter::kIsRate);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "rows"})->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(1);
  b->Args({1, 8192})->Args({1, 262'144})->Args({512, 32'768});
}
BENCHMARK_CAPTURE(select, fp4, RowFormat::fp4_tiles)->Apply(shapes);
BENCHMARK_CAPTURE(select, rows32, RowFormat::f32)->Apply([](benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "rows"})->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(0.3);
  b->Args({1, 8192})->Args({1, 65'536})->Args({16, 32'768});
});

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
