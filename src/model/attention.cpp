#include "model/attention.h"

#include <algorithm>

#include "model/compressor.h"
#include "model/indexer.h"

namespace hadal {
namespace {

// What the segments of the batch have kept for this block.
std::span<const AttentionSegment> attention_segments(const Forward& f, std::int64_t block) {
  const StateLayout& layout = f.segments[0].state->layout();
  const BlockStateLayout& block_layout = layout.blocks[static_cast<std::size_t>(block)];
  auto* out = f.host.take<AttentionSegment>(static_cast<std::int64_t>(f.segments.size()));
  for (std::size_t i = 0; i < f.segments.size(); ++i) {
    const Segment& s = f.segments[i];
    out[i] = {s.begin, s.count, s.start, s.state->fixed(block_layout.window),
              s.state->paged_rows(block_layout.rows)};
  }
  return {out, f.segments.size()};
}

// The last w of the new rows take their places in the ring.
void store_window(const Forward& f, std::int64_t block, const float* kv) {
  const Arena::Scope scope(f.host);
  const StateLayout& layout = f.segments[0].state->layout();
  const std::int64_t w = layout.window_rows;
  auto* places = f.host.take<StoreRowsParams::Place>(f.n_tokens());
  std::size_t count = 0;
  for (const Segment& s : f.segments) {
    std::byte* ring = s.state->fixed(layout.blocks[static_cast<std::size_t>(block)].window);
    for (std::int64_t i = std::max<std::int64_t>(0, s.count - w); i < s.count; ++i)
      places[count++] = {s.begin + i, ring, (s.start + i) % w};
  }
  f.backend.run(StoreRowsParams{layout.row, kv, {places, count}});
}

}  // namespace

void attention(const Forward& f, std::int64_t block, const AttentionWeights& w, const float* x, float* out) {
  const Arena::Scope scope(f.arena), host_scope(f.host);
  const Config& config = f.config;
  const std::int64_t n = f.n_tokens(), heads = config.num_attention_heads, c = config.head_dim;
  const std::int64_t r = config.qk_rope_head_dim;
  const AttentionKind kind = config.attention_kind(block);
  const bool compressed = kind != AttentionKind::sliding;
  const float* cos = compressed ? f.compress_cos : f.sliding_cos;
  const float* sin = compressed ? f.compress_sin : f.sliding_sin;

  float* qr = f.arena.take<float>(n * config.q_lora_rank);
  f.linear(w.wq_a, x, n, qr);
  f.rms_norm(qr, w.q_norm.data(), n, config.q_lora_rank, qr);
  float* q = f.arena.take<float>(n * heads * c);
  f.linear(w.wq_b, qr, n, q);
  f.rms_norm(q, nullptr, n * heads, c, q);  // per head, no weight
  f.backend.run(RopeParams{n, heads, c, r, cos, sin, false, q});
  f.watch("attn.q", q, {n, heads, c});

  // One latent row per token is key and value of every head.
  float* kv = f.arena.take<float>(n * c);
  f.linear(w.wkv, x, n, kv);
  f.rms_norm(kv, w.kv_norm.data(), n, c, kv);
  f.backend.run(RopeParams{n, 1, c, r, cos, sin, false, kv});
  f.round_cache_rows(n, kv);
  f.watch("attn.kv_window", kv, {n, c});

  std::span<std::int64_t> visible;         // [T]: row b may be seen from token t iff b < (t + 1) / m
  const std::int32_t* selected = nullptr;  // all that are visible
  if (compressed) {
    compress_tokens(
        f, block,
        {w.compressor, &BlockStateLayout::tail, &BlockStateLayout::rows, false, "attn.kv_compressed"}, x);
    visible = {f.host.take<std::int64_t>(n), static_cast<std::size_t>(n)};
    for (const Segment& s : f.segments) {
      for (std::int64_t i = 0; i < s.count; ++i)
        visible[static_cast<std::size_t>(s.begin + i)] = (s.start + i + 1) / config.compress_ratio(block);
    }
  }
  if (kind == AttentionKind::csa) {
    compress_tokens(f, block,
                    {w.indexer.compressor, &BlockStateLayout::index_tail, &BlockStateLayout::index_rows, true,
                     "attn.indexer.kv_compressed"},
                    x);
    selected = select_rows(f, block, w.indexer, x, qr, visible);
  }

  float* o = f.arena.take<float>(n * heads * c);
  const StateLayout& layout = f.segments[0].state->layout();
  f.backend.run(SparseAttentionParams{n, heads, layout.row, q, kv, attention_segments(f, block),
                                      layout.window_rows, visible, config.index_topk, selected,
                                      w.attn_sink.data(), o, f.numerics == Numerics::int8});
  f.watch("attn.sparse_attn_out", o, {n, heads, c});
  store_window(f, block, kv);

  // Values carry rope too (keys and values are one), so the output is rotated back. Then the heads of each
  // group are projected together (wo_a, whose input is not rounded to E4M3), and all groups to d.
  f.backend.run(RopeParams{n, heads, c, r, cos, sin, true, o});
  float* z = f.arena.take<float>(n * w.wo_a.out);
  f.backend.run(LinearParams{n, o, &w.wo_a, config.o_groups,
                             f.rounding() == InputRounding::int8 ? InputRounding::int8 : InputRounding::none,
                             z});
  f.linear(w.wo_b, z, n, out);
  f.watch("attn.output", out, {n, config.hidden_size});
}

}  // namespace hadal
