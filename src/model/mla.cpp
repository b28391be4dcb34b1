#include "model/mla.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/indexer.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

// (nope + rope)^-1/2, times YaRN's mscale squared: queries and keys both carry it.
float softmax_scale(const Config& config) {
  const V32Config& v = *config.v32;
  double scale = 1 / std::sqrt(static_cast<double>(v.qk_nope_head_dim + config.qk_rope_head_dim));
  if (config.rope_scaling && config.rope_scaling->factor > 1 && v.mscale_all_dim > 0) {
    const double mscale = 0.1 * v.mscale_all_dim * std::log(config.rope_scaling->factor) + 1;
    scale *= mscale * mscale;
  }
  return static_cast<float>(scale);
}

// Queries in the space of the rows: [T, H, kv_lora + rope].
float* absorbed_queries(const Forward& f, const MlaWeights& w, const float* qr) {
  const V32Config& v = *f.config.v32;
  const std::int64_t n = f.n_tokens(), heads = f.config.num_attention_heads, rope = f.config.qk_rope_head_dim;
  const std::int64_t nope = v.qk_nope_head_dim, lora = v.kv_lora_rank;
  float* out = f.arena.take<float>(n * heads * (lora + rope));
  const Arena::Scope scope(f.arena);
  float* q = f.arena.take<float>(n * heads * (nope + rope));
  f.linear(w.q_b_proj, qr, n, q);
  f.backend.run(RopeParams{n, heads, nope + rope, rope, f.compress_cos, f.compress_sin, false, q});
  f.watch("attn.q", q, {n, heads, nope + rope});

  float* q_nope = f.arena.take<float>(n * heads * nope);
  float* q_lora = f.arena.take<float>(n * heads * lora);
  for (std::int64_t th = 0; th < n * heads; ++th)
    std::copy_n(q + th * (nope + rope), nope, q_nope + th * nope);
  f.backend.run(LinearParams{n, q_nope, &w.absorbed_q, heads, InputRounding::none, q_lora});
  for (std::int64_t th = 0; th < n * heads; ++th) {
    float* to = std::copy_n(q_lora + th * lora, lora, out + th * (lora + rope));
    std::copy_n(q + th * (nope + rope) + nope, rope, to);
  }
  return out;
}

// Rows of all tokens of the batch, [T, dim of the rows], into the state, a row a token.
void store(const Forward& f, const RowsLayout& rows, const float* x) {
  const Arena::Scope scope(f.host);
  auto* places = f.host.take<StoreRowsParams::Place>(f.n_tokens());
  std::size_t count = 0;
  for (const Segment& s : f.segments) {
    for (std::int64_t i = 0; i < s.count; ++i) {
      const std::int64_t t = s.start + i;
      if (s.state->wants(rows, t)) places[count++] = {s.begin + i, s.state->page(rows, t), t % rows.per_page};
    }
  }
  f.backend.run(StoreRowsParams{rows.shape, x, {places, count}});
}

// The rows of the batch's tokens: [T, kv_lora + rope].
void store_rows(const Forward& f, std::int64_t block, const MlaWeights& w, const float* x) {
  const Arena::Scope scope(f.arena);
  const std::int64_t n = f.n_tokens(), lora = f.config.v32->kv_lora_rank, rope = f.config.qk_rope_head_dim;
  float* kv = f.arena.take<float>(n * (lora + rope));
  float* latent = f.arena.take<float>(n * lora);
  f.linear(w.kv_a_proj, x, n, kv);
  for (std::int64_t t = 0; t < n; ++t) std::copy_n(kv + t * (lora + rope), lora, latent + t * lora);
  f.rms_norm(latent, w.kv_a_layernorm.data(), n, lora, latent);
  for (std::int64_t t = 0; t < n; ++t) std::copy_n(latent + t * lora, lora, kv + t * (lora + rope));
  f.backend.run(RopeParams{n, 1, lora + rope, rope, f.compress_cos, f.compress_sin, false, kv});
  f.round_cache_rows(n, kv);
  f.watch("attn.kv", kv, {n, lora + rope});
  store(f, f.segments[0].state->layout().blocks[static_cast<std::size_t>(block)].rows, kv);
}

// The indexer's own rotation and rounding, of queries and of keys: [rows, dim], `heads` rows a token.
void finish_index_rows(const Forward& f, std::int64_t heads, float* rows) {
  const std::int64_t n = f.n_tokens(), dim = f.config.index_head_dim;
  f.backend.run(RopeParams{n, heads, dim, f.config.qk_rope_head_dim, f.compress_cos, f.compress_sin, false,
                           rows, RopeParams::Pairs::first_halves});
  f.backend.run(HadamardParams{n * heads, dim, rows});
  if (f.simulate_cache())
    f.backend.run(QuantiseParams{QuantiseParams::Format::e4m3_128, n * heads, dim, dim, rows});
}

void store_index_rows(const Forward& f, std::int64_t block, const DsaIndexerWeights& w, const float* x) {
  const Arena::Scope scope(f.arena);
  const std::int64_t n = f.n_tokens(), dim = f.config.index_head_dim;
  float* k = f.arena.take<float>(n * dim);
  f.linear(w.wk, x, n, k);
  f.backend.run(LayerNormParams{n, dim, k, w.k_norm.data(), w.k_norm_bias.data(), 1e-6F, k});
  finish_index_rows(f, 1, k);
  f.watch("attn.indexer.k", k, {n, dim});
  store(f, f.segments[0].state->layout().blocks[static_cast<std::size_t>(block)].index_rows, k);
}

// [T, index_topk] from the arena, or null where every token may attend to all that it sees.
const std::int32_t* select_tokens(const Forward& f, std::int64_t block, const DsaIndexerWeights& w,
                                  const float* x, const float* qr, std::span<const std::int64_t> visible) {
  if (nothing_to_choose(f, visible) && f.tap == nullptr) return nullptr;
  auto* selected = f.arena.take<std::int32_t>(f.n_tokens() * f.config.index_topk);
  const Arena::Scope scope(f.arena);
  const std::int64_t n = f.n_tokens(), heads = f.config.index_n_heads, dim = f.config.index_head_dim;
  float* q = f.arena.take<float>(n * heads * dim);
  f.linear(w.wq_b, qr, n, q);
  finish_index_rows(f, heads, q);
  float* weights = f.arena.take<float>(n * heads);
  f.linear(w.weights_proj, x, n, weights);
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim) * static_cast<double>(heads)));
  f.backend.run(ScaleParams{n * heads, scale, weights});
  choose_rows(f, block, q, weights, visible, selected);
  f.watch("attn.indexer.topk", selected, {n, f.config.index_topk});
  return selected;
}

}  // namespace

void mla(const Forward& f, std::int64_t block, const MlaWeights& w, const float* x, float* out) {
  const Arena::Scope scope(f.arena), host_scope(f.host);
  const Config& config = f.config;
  const V32Config& v = *config.v32;
  const std::int64_t n = f.n_tokens(), heads = config.num_attention_heads;
  float* qr = f.arena.take<float>(n * config.q_lora_rank);
  f.linear(w.q_a_proj, x, n, qr);
  f.rms_norm(qr, w.q_a_layernorm.data(), n, config.q_lora_rank, qr);
  const float* q = absorbed_queries(f, w, qr);
  store_rows(f, block, w, x);
  store_index_rows(f, block, w.indexer, x);

  // A token sees the rows up to its own.
  auto* visible = f.host.take<std::int64_t>(n);
  auto* segments = f.host.take<AttentionSegment>(static_cast<std::int64_t>(f.segments.size()));
  const StateLayout& layout = f.segments[0].state->layout();
  for (std::size_t i = 0; i < f.segments.size(); ++i) {
    const Segment& s = f.segments[i];
    for (std::int64_t t = 0; t < s.count; ++t) visible[s.begin + t] = s.start + t + 1;
    segments[i] = {s.begin, s.count, s.start, nullptr,
                   s.state->paged_rows(layout.blocks[static_cast<std::size_t>(block)].rows)};
  }
  const std::span<const std::int64_t> seen(visible, static_cast<std::size_t>(n));
  const std::int32_t* selected = select_tokens(f, block, w.indexer, x, qr, seen);

  float* o = f.arena.take<float>(n * heads * v.kv_lora_rank);
  SparseAttentionParams attention;
  attention.n_tokens = n;
  attention.heads = heads;
  attention.row = layout.row;
  attention.q = q;
  attention.segments = {segments, f.segments.size()};
  attention.visible = seen;
  attention.k = config.index_topk;
  attention.selected = selected;
  attention.out = o;
  attention.bf16 = f.numerics == Numerics::int8;
  attention.value_dim = v.kv_lora_rank;
  attention.scale = softmax_scale(config);
  f.backend.run(attention);

  float* values = f.arena.take<float>(n * heads * v.v_head_dim);
  f.backend.run(LinearParams{n, o, &w.absorbed_v, heads, InputRounding::none, values});
  f.linear(w.o_proj, values, n, out);
  f.watch("attn.output", out, {n, config.hidden_size});
}

Buffer<std::byte> absorb(const V32Config& config, MlaWeights& w) {
  const Linear& from = w.kv_b_proj;
  const std::int64_t nope = config.qk_nope_head_dim, values = config.v_head_dim, lora = config.kv_lora_rank;
  const std::int64_t heads = from.out / (nope + values);
  const bool wide = from.format == Linear::Format::f32 || from.format == Linear::Format::f16;
  const std::int64_t size = wide ? 4 : 2;
  auto memory = Buffer<std::byte>::uninitialised(static_cast<std::size_t>(from.out * lora * size));
  std::byte* const up = memory.data();
  std::byte* const down = up + heads * lora * nope * size;
  const auto put = [&](std::byte* matrix, std::int64_t i, float value) {
    if (wide) {
      std::memcpy(matrix + 4 * i, &value, 4);
    } else {
      const std::uint16_t bits = f32_to_bf16(value);
      std::memcpy(matrix + 2 * i, &bits, 2);
    }
  };
  std::vector<float> row(static_cast<std::size_t>(lora));
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t i = 0; i < nope + values; ++i) {
      ref::dequantise_row(from, h * (nope + values) + i, row.data());
      for (std::int64_t c = 0; c < lora; ++c) {
        const float value = row[static_cast<std::size_t>(c)];
        if (i < nope) {
          put(up, (h * lora + c) * nope + i, value);
        } else {
          put(down, (h * values + i - nope) * lora + c, value);
        }
      }
    }
  }
  const auto format = wide ? Linear::Format::f32 : Linear::Format::bf16;
  w.absorbed_q = {heads * lora, nope, format, up, nullptr, "self_attn.absorbed_q"};
  w.absorbed_v = {heads * values, lora, format, down, nullptr, "self_attn.absorbed_v"};
  return memory;
}

}  // namespace hadal
