#include "model/compressor.h"

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

  const Arena::Scope host_scope(f.host);
  const auto n_segments = static_cast<std::int64_t>(f.segments.size());
  auto* segments = f.host.take<CompressSegment>(n_segments);
  std::int64_t n_rows = 0;
  for (std::size_t i = 0; i < f.segments.size(); ++i) {
    const Segment& s = f.segments[i];
    segments[i] = {s.begin, s.count, s.start, s.state->fixed_floats(tail.values),
                   s.state->fixed_floats(tail.gates)};
    n_rows += (s.start + s.count) / m - s.start / m;
  }
  float* out = f.arena.take<float>(n_rows * dim);
  f.backend.run(
      CompressTokensParams{m, dim, tail.overlap, k, g, w.ape.data(), {segments, f.segments.size()}, out});
  if (n_rows == 0) return;
  f.rms_norm(out, w.norm.data(), n_rows, dim, out);

  // A row sits at the position of its block's first token.
  auto* positions = f.host.take<std::int64_t>(n_rows);
  auto* places = f.host.take<StoreRowsParams::Place>(n_rows);
  std::int64_t row = 0;
  std::size_t wanted = 0;
  for (const Segment& s : f.segments) {
    for (std::int64_t b = s.start / m; b < (s.start + s.count) / m; ++b, ++row) {
      positions[row] = b * m;
      if (s.state->wants(rows, b)) places[wanted++] = {row, s.state->page(rows, b), b % rows.per_page};
    }
  }
  const std::int64_t rope_dim = f.config.qk_rope_head_dim;
  float* cos = f.arena.take<float>(n_rows * rope_dim / 2);
  float* sin = f.arena.take<float>(n_rows * rope_dim / 2);
  const auto count = static_cast<std::size_t>(n_rows);
  f.backend.run(AnglesParams{{positions, count}, f.compress_frequencies.values(), cos, sin});
  f.backend.run(RopeParams{n_rows, 1, dim, rope_dim, cos, sin, false, out});
  if (plan.rotate) {
    f.backend.run(HadamardParams{n_rows, dim, out});
    if (f.simulate_cache())
      f.backend.run(QuantiseParams{QuantiseParams::Format::e2m1_32, n_rows, dim, dim, out});
  } else {
    f.round_cache_rows(n_rows, out);
  }
  f.watch(plan.tap_name, out, {n_rows, dim});
  f.backend.run(StoreRowsParams{rows.shape, out, {places, wanted}});
}

}  // namespace hadal
