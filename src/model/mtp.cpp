#include "model/mtp.h"

#include "model/block.h"

namespace hadal {

Status mtp(const Forward& f, std::int64_t index, const Weights& weights, const float* streams,
           float* logits) {
  const Arena::Scope scope(f.arena);
  const MtpWeights& w = weights.mtp[static_cast<std::size_t>(index)];
  const std::int64_t t = f.n_tokens(), n = f.config.hc_mult, d = f.config.hidden_size;

  float* e = f.arena.take<float>(t * d);
  f.backend.run(EmbedParams{f.tokens, &weights.embed, 1, e});
  f.rms_norm(e, w.enorm.data(), t, d, e);
  float* projected = f.arena.take<float>(t * d);
  f.linear(w.e_proj, e, t, projected);

  // X'[i] = e_proj e + h_proj rmsnorm(X[i]) for each stream i
  float* normed = f.arena.take<float>(t * n * d);
  f.rms_norm(streams, w.hnorm.data(), t * n, d, normed);
  float* mixed = f.arena.take<float>(t * n * d);
  f.linear(w.h_proj, normed, t * n, mixed);
  f.backend.run(AddRowsParams{t * n, d, n, projected, mixed});

  HADAL_RETURN_IF_ERROR(run_block(f, f.config.num_hidden_layers + index, w.block, mixed));
  float* h = f.arena.take<float>(t * d);
  read_head(f, w.hc_head, mixed, t, h);
  f.rms_norm(h, w.norm.data(), t, d, h);
  f.linear(weights.head, h, t, logits);
  return {};
}

}  // namespace hadal
