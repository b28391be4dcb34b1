#include "model/indexer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace hadal {

bool nothing_to_choose(const Forward& f, std::span<const std::int64_t> visible) {
  return *std::max_element(visible.begin(), visible.end()) <= f.config.index_topk;
}

const std::int32_t* select_rows(const Forward& f, std::int64_t block, const IndexerWeights& w, const float* x,
                                const float* qr, std::span<const std::int64_t> visible) {
  if (nothing_to_choose(f, visible) && f.tap == nullptr) return nullptr;
  const std::int64_t heads = f.config.index_n_heads, dim = f.config.index_head_dim, n = f.n_tokens();
  auto* selected = f.arena.take<std::int32_t>(n * f.config.index_topk);
  const Arena::Scope scope(f.arena);

  float* q = f.arena.take<float>(n * heads * dim);
  f.linear(w.wq_b, qr, n, q);
  f.backend.run(
      RopeParams{n, heads, dim, f.config.qk_rope_head_dim, f.compress_cos, f.compress_sin, false, q});
  f.backend.run(HadamardParams{n * heads, dim, q});
  if (f.simulate_cache())
    f.backend.run(QuantiseParams{QuantiseParams::Format::e2m1_32, n * heads, dim, dim, q});
  f.watch("attn.indexer.q", q, {n, heads, dim});

  float* weights = f.arena.take<float>(n * heads);
  f.linear(w.weights_proj, x, n, weights);
  const auto scale =
      static_cast<float>(1 / (std::sqrt(static_cast<double>(dim)) * std::sqrt(static_cast<double>(heads))));
  f.backend.run(ScaleParams{n * heads, scale, weights});
  f.watch("attn.indexer.weights", weights, {n, heads});
  choose_rows(f, block, q, weights, visible, selected);
  f.watch("attn.indexer.topk", selected, {n, f.config.index_topk});
  return selected;
}

void choose_rows(const Forward& f, std::int64_t block, const float* q, const float* weights,
                 std::span<const std::int64_t> visible, std::int32_t* selected) {
  const Arena::Scope scope(f.arena);
  const std::int64_t heads = f.config.index_n_heads, dim = f.config.index_head_dim;
  const std::int64_t top_k = f.config.index_topk;
  const RowsLayout& rows = f.segments[0].state->layout().blocks[static_cast<std::size_t>(block)].index_rows;
  for (const Segment& s : f.segments) {
    const auto seen = visible.subspan(static_cast<std::size_t>(s.begin), static_cast<std::size_t>(s.count));
    const float* own_q = q + s.begin * heads * dim;
    const float* own_weights = weights + s.begin * heads;
    const PagedRows paged = s.state->paged_rows(rows);
    f.backend.run(IndexSelectParams{s.count, heads, dim, top_k, own_q, own_weights, paged, seen,
                                    selected + s.begin * top_k});
    if (f.tap == nullptr) continue;
    // The selection never holds all scores at once; whoever watches gets them computed for that.
    const Arena::Scope segment_scope(f.arena);
    const std::int64_t stride = std::max<std::int64_t>(1, seen.back());
    float* scores = f.arena.take<float>(s.count * stride);
    const std::vector<float> nothing(static_cast<std::size_t>(s.count * stride),
                                     -std::numeric_limits<float>::infinity());
    f.backend.memory().write(reinterpret_cast<std::byte*>(scores), nothing.data(), 4 * nothing.size());
    f.backend.run(IndexScoresParams{s.count, heads, dim, own_q, own_weights, paged, seen, stride, scores});
    f.watch("attn.indexer.scores", scores, {s.count, stride});
  }
}

}  // namespace hadal
