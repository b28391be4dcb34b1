// The reference as a backend.
#pragma once

#include "ops/backend.h"
#include "ops/ref/ref.h"

namespace hadal {

class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(ThreadPool& pool) : pool_(pool) {}
  std::string_view name() const override { return "ref"; }

 protected:
  void embed(const EmbedParams& p) override { ref::embed(p, pool_); }
  void rms_norm(const RmsNormParams& p) override { ref::rms_norm(p, pool_); }
  void layer_norm(const LayerNormParams& p) override { ref::layer_norm(p, pool_); }
  void linear(const LinearParams& p) override { ref::linear(p, pool_); }
  void rope(const RopeParams& p) override { ref::rope(p, pool_); }
  void quantise(const QuantiseParams& p) override { ref::quantise(p, pool_); }
  void hadamard(const HadamardParams& p) override { ref::hadamard(p, pool_); }
  void compress(const CompressParams& p) override { ref::compress(p, pool_); }
  void index_scores(const IndexScoresParams& p) override { ref::index_scores(p, pool_); }
  void index_select(const IndexSelectParams& p) override { ref::index_select(p, pool_); }
  void sparse_attention(const SparseAttentionParams& p) override { ref::sparse_attention(p, pool_); }
  void hc_pre(const HcPreParams& p) override { ref::hc_pre(p, pool_); }
  void hc_post(const HcPostParams& p) override { ref::hc_post(p, pool_); }
  void hc_head(const HcHeadParams& p) override { ref::hc_head(p, pool_); }
  void gate(const GateParams& p) override { ref::gate(p, pool_); }
  void experts(const ExpertsParams& p) override { ref::experts(p, pool_); }

  ThreadPool& pool_;
};

}  // namespace hadal
