// What loading does to weights: FP8 to the tiles of `int8` numerics, and the search for what is not finite.
// GB/s are of the weights as the file has them.
#include <vector>

#include <benchmark/benchmark.h>

#include "base/buffer.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "ops/cpu/int8_tiles.h"

namespace hadal {
namespace {

using cpu::Int8Tiles;

// wq_b of V4-Flash: [32768, 1024] FP8; packed over and over into the same memory.
void pack(benchmark::State& state, void (*pack_tile)(const Linear&, std::int64_t, std::byte*)) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  const std::int64_t out = 32768, in = 1024;
  Buffer<std::byte> weight = Buffer<std::byte>::uninitialised(static_cast<std::size_t>(out * in));
  const Philox random(1, 0);
  for (std::size_t i = 0; i < weight.size(); i += 16) {
    auto words = random.block(i);
    for (auto& word : words) word &= 0xbfbfbfbf;  // no NaN
    std::memcpy(weight.data() + i, words.data(), 16);
  }
  std::vector<std::uint8_t> scale(static_cast<std::size_t>(out / 128 * (in / 128)), 120);
  const Linear w{out, in, Linear::Format::fp8, weight.data(), scale.data()};
  const std::int64_t tile_bytes = Int8Tiles::bytes(in);
  Buffer<std::byte> tiles(static_cast<std::size_t>(Int8Tiles::tiles(out) * tile_bytes));
  for (auto _ : state) {
    pool.parallel_for(Int8Tiles::tiles(out), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t tile = begin; tile < end; ++tile)
        pack_tile(w, tile, tiles.data() + tile * tile_bytes);
    });
  }
  state.SetBytesProcessed(state.iterations() * out * in);
}
BENCHMARK_CAPTURE(pack, by_table, cpu::pack_int8_tile)->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK_CAPTURE(pack, plainly, cpu::pack_int8_tile_plainly)->Arg(1)->Arg(2)->UseRealTime();

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
