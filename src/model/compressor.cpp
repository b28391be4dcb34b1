#include "model/compressor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace hadal {

void compress_tokens(const Forward& f, std::int64_t block, const CompressorPlan& plan, const float* x) {
  const Arena::Scope scope(f.arena);
  const CompressorWeights& w = plan.weights;
  const auto& layout = f.segments[0].state->layout().blocks[static_cast<std::size_t>(block)];
  const TailLayout& tail = layout.*plan.tail;
  const RowsLayout& rows = layout.*plan.rows;
  const std::int64_t m = tail.ratio, wide = tail.wide, dim = rows.shape.dim;

  // Of every token: its value k = wkv x and its gate g = wgate x, both [T, o*c'].
  float* k = f.arena.take<float>(f.n_tokens() * wide);
  float* g = f.arena.take<float>(f.n_tokens() * wide);
  f.compressor_linear(w.wkv, x, f.n_tokens(), k);
  f.compressor_linear(w.wgate, x, f.n_tokens(), g);

  for (const Segment& s : f.segments) {
    const Arena::Scope segment_scope(f.arena);
    // The tail and the new tokens, one after another; `gates` with the position bias by place in the block.
    const std::int64_t kept = tail.rows(s.start), total = kept + s.count;
    float* values = f.arena.take<float>(total * wide);
    float* gates = f.arena.take<float>(total * wide);
    std::copy_n(s.state->fixed_floats(tail.values), kept * wide, values);
    std::copy_n(s.state->fixed_floats(tail.gates), kept * wide, gates);
    std::copy_n(k + s.begin * wide, s.count * wide, values + kept * wide);
    for (std::int64_t i = 0; i < s.count; ++i) {
      const float* bias = w.ape.data() + (s.start + i) % m * wide;
      const float* gate = g + (s.begin + i) * wide;
      float* to = gates + (kept + i) * wide;
      for (std::int64_t c = 0; c < wide; ++c) to[c] = gate[c] + bias[c];
    }

    const std::int64_t first_block = s.start / m, n_blocks = (s.start + s.count) / m - first_block;
    if (n_blocks > 0) {
      float* out = f.arena.take<float>(n_blocks * dim);
      const bool has_previous = tail.overlap && first_block > 0;
      f.backend.run(CompressParams{n_blocks, m, dim, tail.overlap, has_previous, values, gates, out});
      f.rms_norm(out, w.norm.data(), n_blocks, dim, out);

      // A row sits at the position of its block's first token.
      const std::int64_t rope_dim = f.config.qk_rope_head_dim;
      auto* positions = f.arena.take<std::int64_t>(n_blocks);
      for (std::int64_t b = 0; b < n_blocks; ++b) positions[b] = (first_block + b) * m;
      float* cos = f.arena.take<float>(n_blocks * rope_dim / 2);
      float* sin = f.arena.take<float>(n_blocks * rope_dim / 2);
      f.compress_frequencies.angles({positions, static_cast<std::size_t>(n_blocks)}, cos, sin);
      f.backend.run(RopeParams{n_blocks, 1, dim, rope_dim, cos, sin, false, out});
      if (plan.rotate) {
        f.backend.run(HadamardParams{n_blocks, dim, out});
        if (f.simulate_cache())
          f.backend.run(QuantiseParams{QuantiseParams::Format::e2m1_32, n_blocks, dim, dim, out});
      } else {
        f.round_cache_rows(n_blocks, out);
      }
      f.watch(plan.tap_name, out, {n_blocks, dim});
      for (std::int64_t b = 0; b < n_blocks; ++b) s.state->store(rows, first_block + b, out + b * dim);
    }

    const std::int64_t keep = tail.rows(s.start + s.count);
    std::copy_n(values + (total - keep) * wide, keep * wide, s.state->fixed_floats(tail.values));
    std::copy_n(gates + (total - keep) * wide, keep * wide, s.state->fixed_floats(tail.gates));
  }
}

}  // namespace hadal
