#include "model/block.h"

#include <algorithm>

#include "model/attention.h"
#include "model/mla.h"
#include "model/moe.h"

namespace hadal {
namespace {

// streams = hc_post(sublayer(rmsnorm(hc_pre(streams))), streams)
template <class Sublayer>
Status hyper_connected(const Forward& f, const HyperConnectionWeights& w, const Vector& norm,
                       const char* mixer, const char* input, float* streams, Sublayer&& sublayer) {
  const Arena::Scope scope(f.arena);
  const std::int64_t t = f.n_tokens(), n = f.config.hc_mult, d = f.config.hidden_size;
  float* mix = f.arena.take<float>(t * (2 + n) * n);
  float* pre = f.arena.take<float>(t * n);
  float* post = f.arena.take<float>(t * n);
  float* comb = f.arena.take<float>(t * n * n);
  float* x = f.arena.take<float>(t * d);
  float* y = f.arena.take<float>(t * d);
  f.linear(w.fn, streams, t, mix);
  f.backend.run(HcPreParams{t, n, d, streams, mix, w.scale.data(), w.base.data(), f.config.hc_sinkhorn_iters,
                            static_cast<float>(f.config.rms_norm_eps), static_cast<float>(f.config.hc_eps),
                            pre, post, comb, x});
  if (f.tap != nullptr) {
    const std::string prefix = mixer;
    f.watch((prefix + ".pre").c_str(), pre, {t, n});
    f.watch((prefix + ".post").c_str(), post, {t, n});
    f.watch((prefix + ".comb").c_str(), comb, {t, n, n});
  }
  f.rms_norm(x, norm.data(), t, d, x);
  f.watch(input, x, {t, d});
  HADAL_RETURN_IF_ERROR(sublayer(x, y));
  f.backend.run(HcPostParams{t, n, d, y, post, comb, streams});
  return {};
}

// V3.2: stream += sublayer(rmsnorm(stream))
template <class Sublayer>
Status residual(const Forward& f, const Vector& norm, float* stream, Sublayer&& sublayer) {
  const Arena::Scope scope(f.arena);
  const std::int64_t n = f.n_tokens(), d = f.config.hidden_size;
  float* x = f.arena.take<float>(n * d);
  float* y = f.arena.take<float>(n * d);
  f.rms_norm(stream, norm.data(), n, d, x);
  HADAL_RETURN_IF_ERROR(sublayer(x, y));
  for (std::int64_t i = 0; i < n * d; ++i) stream[i] += y[i];
  return {};
}

Status run_v32_block(const Forward& f, std::int64_t block, const BlockWeights& w, float* stream) {
  HADAL_RETURN_IF_ERROR(residual(f, w.attn_norm, stream, [&](const float* x, float* y) -> Status {
    mla(f, block, w.mla, x, y);
    return {};
  }));
  return residual(f, w.ffn_norm, stream, [&](const float* x, float* y) -> Status {
    if (!f.config.dense_ffn(block)) return moe(f, block, w.ffn, x, y);
    dense_ffn(f, w.dense, x, y);
    return {};
  });
}

}  // namespace

Status run_block(const Forward& f, std::int64_t block, const BlockWeights& w, float* streams) {
  if (f.config.v32) return run_v32_block(f, block, w, streams);
  HADAL_RETURN_IF_ERROR(hyper_connected(f, w.hc_attn, w.attn_norm, "hc_attn", "attn.input", streams,
                                        [&](const float* x, float* y) -> Status {
                                          attention(f, block, w.attn, x, y);
                                          return {};
                                        }));
  HADAL_RETURN_IF_ERROR(
      hyper_connected(f, w.hc_ffn, w.ffn_norm, "hc_ffn", "ffn.input", streams,
                      [&](const float* x, float* y) { return moe(f, block, w.ffn, x, y); }));
  f.watch("streams_out", streams, {f.n_tokens(), f.config.hc_mult, f.config.hidden_size});
  return {};
}

void read_head(const Forward& f, const HcHeadWeights& w, const float* streams, std::int64_t n_tokens,
               float* h) {
  const Arena::Scope scope(f.arena);
  const std::int64_t n = f.config.hc_mult, d = f.config.hidden_size;
  if (f.config.v32) {  // its one stream is what the head reads
    std::copy_n(streams, n_tokens * d, h);
    return;
  }
  float* mix = f.arena.take<float>(n_tokens * n);
  f.linear(w.fn, streams, n_tokens, mix);
  f.backend.run(HcHeadParams{n_tokens, n, d, streams, mix, w.scale.data(), w.base.data(),
                             static_cast<float>(f.config.rms_norm_eps), static_cast<float>(f.config.hc_eps),
                             h});
}

}  // namespace hadal
