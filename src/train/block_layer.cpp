#include "train/block_layer.h"

#include <algorithm>

namespace hadal {
namespace {

void observe_sums(const float* comb, std::int64_t tokens, std::int64_t n, MixingSums& sums) {
  for (std::int64_t t = 0; t < tokens; ++t, comb += n * n) {
    for (std::int64_t i = 0; i < n; ++i) {
      float row = 0, column = 0;
      for (std::int64_t j = 0; j < n; ++j) {
        row += comb[i * n + j];
        column += comb[j * n + i];
      }
      sums.least_row = std::min(sums.least_row, row);
      sums.most_row = std::max(sums.most_row, row);
      sums.least_column = std::min(sums.least_column, column);
      sums.most_column = std::max(sums.most_column, column);
    }
  }
}

}  // namespace

const float* HyperConnection::pre(Pass& pass, const float* streams) {
  const Config& config = pass.config;
  const std::int64_t tokens = pass.n(), n = config.hc_mult, d = config.hidden_size;
  streams_ = streams;
  mix_ = pass.kept.take<float>(tokens * (2 + n) * n);
  post_ = pass.kept.take<float>(tokens * n);
  comb_ = pass.kept.take<float>(tokens * n * n);
  read_ = pass.kept.take<float>(tokens * d);
  float* x = pass.kept.take<float>(tokens * d);
  Products(pass).linear(w_.fn, streams, tokens, mix_);
  const Arena::Scope scope(pass.scratch);
  float* pre = pass.scratch.take<float>(tokens * n);
  pass.backend.run(HcPreParams{tokens, n, d, streams, mix_, w_.scale.data(), w_.base.data(),
                               config.hc_sinkhorn_iters, pass.eps(), static_cast<float>(config.hc_eps), pre,
                               post_, comb_, read_});
  observe_sums(comb_, tokens, n, pass.mixing_sums);
  pass.rms_norm(read_, &norm_, tokens, d, x);
  return x;
}

const float* HyperConnection::post(Pass& pass, const float* y) {
  const std::int64_t tokens = pass.n(), n = pass.config.hc_mult, d = pass.config.hidden_size;
  y_ = y;
  float* after = pass.kept.take<float>(tokens * n * d);
  pass.pool.parallel_for(tokens, 16, [&](std::int64_t begin, std::int64_t end) {
    std::copy_n(streams_ + begin * n * d, (end - begin) * n * d, after + begin * n * d);
  });
  pass.backend.run(HcPostParams{tokens, n, d, y, post_, comb_, after});
  return after;
}

void HyperConnection::post_backward(Pass& pass, float* d_streams, float* d_y) {
  const std::int64_t tokens = pass.n(), n = pass.config.hc_mult, d = pass.config.hidden_size;
  d_post_ = pass.kept.take<float>(tokens * n);
  d_comb_ = pass.kept.take<float>(tokens * n * n);
  pass.training.run(
      HcPostBackwardParams{tokens, n, d, y_, post_, comb_, streams_, d_streams, d_y, d_post_, d_comb_});
}

void HyperConnection::pre_backward(Pass& pass, float* d_x, float* d_streams) {
  const Arena::Scope scope(pass.scratch);
  const Config& config = pass.config;
  const std::int64_t tokens = pass.n(), n = config.hc_mult, d = config.hidden_size;
  pass.rms_norm_backward(read_, &norm_, tokens, d, d_x);
  float* d_mix = pass.scratch.take<float>(tokens * (2 + n) * n);
  pass.training.run(HcPreBackwardParams{tokens, n, d, streams_, mix_, w_.scale.data(), w_.base.data(),
                                        config.hc_sinkhorn_iters, pass.eps(),
                                        static_cast<float>(config.hc_eps), d_x, d_post_, d_comb_, d_streams,
                                        d_mix, pass.gradient(w_.scale), pass.gradient(w_.base)});
  Products products(pass);
  products.input_gradient(w_.fn, d_mix, tokens, d_streams, true);
  products.weight_gradient(w_.fn, d_mix, streams_, tokens);
}

const float* BlockLayer::forward(Pass& pass, const float* streams) {
  const std::int64_t size = pass.n() * pass.config.hidden_size;
  const float* x = hc_attn_.pre(pass, streams);
  float* y = pass.kept.take<float>(size);
  attention_.forward(pass, x, y);
  streams = hc_attn_.post(pass, y);
  x = hc_ffn_.pre(pass, streams);
  y = pass.kept.take<float>(size);
  moe_.forward(pass, x, y);
  return hc_ffn_.post(pass, y);
}

void BlockLayer::backward(Pass& pass, float* d_streams) {
  const Arena::Scope scope(pass.scratch);
  const std::int64_t size = pass.n() * pass.config.hidden_size;
  float* d_y = pass.scratch.take<float>(size);
  float* d_x = pass.scratch.take<float>(size);
  hc_ffn_.post_backward(pass, d_streams, d_y);
  moe_.backward(pass, d_y, d_x);
  hc_ffn_.pre_backward(pass, d_x, d_streams);
  hc_attn_.post_backward(pass, d_streams, d_y);
  attention_.backward(pass, d_y, d_x);
  hc_attn_.pre_backward(pass, d_x, d_streams);
}

}  // namespace hadal
