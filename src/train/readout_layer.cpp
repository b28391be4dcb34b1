#include "train/readout_layer.h"

#include <algorithm>

namespace hadal {
namespace {

constexpr std::int64_t kRows = 384;  // tokens whose logits exist at a time

}  // namespace

const float* ReadoutLayer::normed(Pass& pass, const float* streams) {
  const Config& config = pass.config;
  const std::int64_t tokens = pass.n(), n = config.hc_mult, d = config.hidden_size;
  streams_ = streams;
  mix_ = pass.kept.take<float>(tokens * n);
  read_ = pass.kept.take<float>(tokens * d);
  Products(pass).linear(hc_head_.fn, streams, tokens, mix_);
  pass.backend.run(HcHeadParams{tokens, n, d, streams, mix_, hc_head_.scale.data(), hc_head_.base.data(),
                                pass.eps(), static_cast<float>(config.hc_eps), read_});
  float* h = pass.kept.take<float>(tokens * d);
  pass.rms_norm(read_, &norm_, tokens, d, h);
  return h;
}

void ReadoutLayer::logits(Pass& pass, const float* streams, float* out) {
  const float* h = normed(pass, streams);
  Products(pass).linear(head_, h, pass.n(), out);
}

ReadoutLayer::Loss ReadoutLayer::forward(Pass& pass, const float* streams, const std::int32_t* targets,
                                         const std::uint8_t* counts, float scale) {
  const float* h = normed(pass, streams);
  const std::int64_t tokens = pass.n(), d = pass.config.hidden_size, vocab = pass.config.vocab_size;
  Loss loss;
  loss.n_tokens = std::count_if(counts, counts + tokens, [](std::uint8_t c) { return c != 0; });
  const bool gradient = pass.wants_gradients() && !pass.options.indexer_alone;
  if (gradient) d_h_ = pass.kept.take<float>(tokens * d);

  const Arena::Scope scope(pass.scratch);
  float* scales = pass.scratch.take<float>(tokens);
  const float each = loss.n_tokens > 0 ? scale / static_cast<float>(loss.n_tokens) : 0.0F;
  for (std::int64_t t = 0; t < tokens; ++t) scales[t] = counts[t] != 0 ? each : 0.0F;
  float* losses = pass.scratch.take<float>(tokens);
  float* some = pass.scratch.take<float>(std::min(kRows, tokens) * vocab);
  for (std::int64_t first = 0; first < tokens; first += kRows) {
    const std::int64_t rows = std::min(kRows, tokens - first);
    Products products(pass);
    products.linear(head_, h + first * d, rows, some);
    products.run();
    pass.training.run(CrossEntropyParams{rows, vocab, targets + first, gradient ? scales + first : nullptr,
                                         some, losses + first});
    if (!gradient) continue;
    products.input_gradient(head_, some, rows, d_h_ + first * d, false);
    products.weight_gradient(head_, some, h + first * d, rows);
  }
  for (std::int64_t t = 0; t < tokens; ++t) loss.mean += counts[t] != 0 ? double{losses[t]} : 0;
  if (loss.n_tokens > 0) loss.mean /= static_cast<double>(loss.n_tokens);
  return loss;
}

void ReadoutLayer::backward(Pass& pass, float* d_streams) {
  const Arena::Scope scope(pass.scratch);
  const Config& config = pass.config;
  const std::int64_t tokens = pass.n(), n = config.hc_mult, d = config.hidden_size;
  pass.rms_norm_backward(read_, &norm_, tokens, d, d_h_);
  float* d_mix = pass.scratch.take<float>(tokens * n);
  pass.training.run(HcHeadBackwardParams{tokens, n, d, streams_, mix_, hc_head_.scale.data(),
                                         hc_head_.base.data(), pass.eps(), static_cast<float>(config.hc_eps),
                                         d_h_, d_streams, d_mix, pass.gradient(hc_head_.scale),
                                         pass.gradient(hc_head_.base)});
  Products products(pass);
  products.input_gradient(hc_head_.fn, d_mix, tokens, d_streams, true);
  products.weight_gradient(hc_head_.fn, d_mix, streams_, tokens);
}

}  // namespace hadal
