// The reference as a backend.
#pragma once

#include "base/buffer.h"
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
  void angles(const AnglesParams& p) override { ref::angles(p); }
  void rope(const RopeParams& p) override { ref::rope(p, pool_); }
  void quantise(const QuantiseParams& p) override { ref::quantise(p, pool_); }
  void round_bf16(const RoundBf16Params& p) override { ref::round_bf16(p); }
  void scale(const ScaleParams& p) override { ref::scale(p); }
  void add_rows(const AddRowsParams& p) override { ref::add_rows(p); }
  void gather_rows(const GatherRowsParams& p) override { ref::gather_rows(p); }
  void hadamard(const HadamardParams& p) override { ref::hadamard(p, pool_); }
  void compress(const CompressParams& p) override { ref::compress(p, pool_); }
  // Lays each segment's tail and tokens out for compress().
  void compress_tokens(const CompressTokensParams& p) override;
  void store_rows(const StoreRowsParams& p) override { ref::store_rows(p); }
  void index_scores(const IndexScoresParams& p) override { ref::index_scores(p, pool_); }
  void index_select(const IndexSelectParams& p) override { ref::index_select(p, pool_); }
  void sparse_attention(const SparseAttentionParams& p) override { ref::sparse_attention(p, pool_); }
  void hc_pre(const HcPreParams& p) override { ref::hc_pre(p, pool_); }
  void hc_post(const HcPostParams& p) override { ref::hc_post(p, pool_); }
  void hc_head(const HcHeadParams& p) override { ref::hc_head(p, pool_); }
  void gate(const GateParams& p) override { ref::gate(p, pool_); }
  void experts(const ExpertsParams& p) override { ref::experts(p, pool_); }

  ThreadPool& pool_;

 private:
  Buffer<float> values_, gates_;  // of a compressor's segment
};

}  // namespace hadal
