#include "train/mtp_layer.h"

#include <algorithm>

namespace hadal {

ReadoutLayer::Loss MtpLayer::forward(Pass& pass, const float* streams, const std::int32_t* next,
                                     const std::int32_t* targets, const std::uint8_t* counts, float scale) {
  const std::int64_t tokens = pass.n(), n = pass.config.hc_mult, d = pass.config.hidden_size;
  streams_ = streams;
  next_ = {next, static_cast<std::size_t>(tokens)};
  embedded_ = pass.kept.take<float>(tokens * d);
  embedded_normed_ = pass.kept.take<float>(tokens * d);
  streams_normed_ = pass.kept.take<float>(tokens * n * d);
  pass.backend.run(EmbedParams{next_, &pass.weights.weights().embed, 1, embedded_});
  pass.rms_norm(embedded_, &w_.enorm, tokens, d, embedded_normed_);
  pass.rms_norm(streams, &w_.hnorm, tokens * n, d, streams_normed_);

  // X'[i] = e_proj e + h_proj rmsnorm(X[i])
  float* mixed = pass.kept.take<float>(tokens * n * d);
  {
    const Arena::Scope scope(pass.scratch);
    float* projected = pass.scratch.take<float>(tokens * d);
    {
      Products products(pass);
      products.linear(w_.e_proj, embedded_normed_, tokens, projected);
      products.linear(w_.h_proj, streams_normed_, tokens * n, mixed);
    }
    pass.pool.parallel_for(tokens * n, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t c = 0; c < d; ++c) mixed[i * d + c] += projected[i / n * d + c];
      }
    });
  }
  return readout_.forward(pass, block_.forward(pass, mixed), targets, counts, scale);
}

void MtpLayer::backward(Pass& pass, float* d_streams) {
  const Arena::Scope scope(pass.scratch);
  const std::int64_t tokens = pass.n(), n = pass.config.hc_mult, d = pass.config.hidden_size;
  float* d_mixed = pass.scratch.take<float>(tokens * n * d);
  readout_.backward(pass, d_mixed);
  block_.backward(pass, d_mixed);

  float* d_projected = pass.scratch.take<float>(tokens * d);
  pass.pool.parallel_for(tokens, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t c = 0; c < d; ++c) {
        float sum = 0;
        for (std::int64_t i = 0; i < n; ++i) sum += d_mixed[(t * n + i) * d + c];
        d_projected[t * d + c] = sum;
      }
    }
  });
  float* d_embedded = pass.scratch.take<float>(tokens * d);
  float* d_normed = pass.scratch.take<float>(tokens * n * d);
  {
    Products products(pass);
    products.input_gradient(w_.e_proj, d_projected, tokens, d_embedded, false);
    products.weight_gradient(w_.e_proj, d_projected, embedded_normed_, tokens);
    products.input_gradient(w_.h_proj, d_mixed, tokens * n, d_normed, false);
    products.weight_gradient(w_.h_proj, d_mixed, streams_normed_, tokens * n);
  }
  pass.rms_norm_backward(embedded_, &w_.enorm, tokens, d, d_embedded);
  pass.training.run(
      EmbedBackwardParams{next_, 1, d, d_embedded, pass.gradient(pass.weights.weights().embed)});
  pass.rms_norm_backward(streams_, &w_.hnorm, tokens * n, d, d_normed);
  pass.add(d_normed, tokens * n * d, d_streams);
}

}  // namespace hadal
