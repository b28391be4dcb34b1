// The backend for one NVIDIA GPU of the Hopper generation (docs/cuda.md).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/check.h"
#include "ops/backend.h"
#include "ops/cuda/ops.h"

namespace hadal {

class CudaBackend final : public Backend {
 public:
  // The first device. Errors: unsupported, naming what is missing.
  static Result<std::unique_ptr<Backend>> make();
  explicit CudaBackend(std::string device);
  ~CudaBackend() override;

  std::string_view name() const override { return name_; }
  Memory& memory() override { return memory_; }
  bool supports(InputRounding rounding) const override { return rounding != InputRounding::int8; }
  // Ops are done later than they are run, so there is nothing to time here.
  void set_profile(Profile* /*profile*/) override {}

 private:
  void embed(const EmbedParams& p) override { record(cuda::embed, p); }
  void rms_norm(const RmsNormParams& p) override;
  // Only DeepSeek-V3.2's indexer has one, and that model runs on CPUs (check_numerics).
  void layer_norm(const LayerNormParams& p) override { HADAL_CHECK(p.rows == 0); }
  void linear(const LinearParams& p) override { record(cuda::linear, p); }
  void angles(const AnglesParams& p) override { record(cuda::angles, p); }
  void rope(const RopeParams& p) override;
  void quantise(const QuantiseParams& p) override;
  void round_bf16(const RoundBf16Params& p) override;
  void scale(const ScaleParams& p) override { record(cuda::scale, p); }
  void add_rows(const AddRowsParams& p) override { record(cuda::add_rows, p); }
  void gather_rows(const GatherRowsParams& p) override { record(cuda::gather_rows, p); }
  void hadamard(const HadamardParams& p) override;
  void compress(const CompressParams& p) override { record(cuda::compress, p); }
  void compress_tokens(const CompressTokensParams& p) override { record(cuda::compress_tokens, p); }
  void store_rows(const StoreRowsParams& p) override { record(cuda::store_rows, p); }
  void index_scores(const IndexScoresParams& p) override { record(cuda::index_scores, p); }
  void index_select(const IndexSelectParams& p) override;
  void sparse_attention(const SparseAttentionParams& p) override { record(cuda::sparse_attention, p); }
  void hc_pre(const HcPreParams& p) override;
  void hc_post(const HcPostParams& p) override { record(cuda::hc_post, p); }
  void hc_head(const HcHeadParams& p) override { record(cuda::hc_head, p); }
  void gate(const GateParams& p) override { record(cuda::gate, p); }
  void experts(const ExpertsParams& p) override { record(cuda::experts, p); }

  template <class Params>
  void record(void (*op)(cuda::Recorder&, const Params&), const Params& p) {
    finish();
    op(recorder_, p);
  }
  // Steps on the same rows in their order become one kernel; so do selections of one layer, and a read-out of
  // the streams with the norm behind it.
  enum class Step : int { none, norm, rope, hadamard, quantise, bf16 };
  cuda::RowSteps& step(Step step, const float* x, float* out, std::int64_t rows, std::int64_t dim);
  // Records what waits for its continuation.
  void finish();

  std::string name_;
  cuda::DeviceMemory memory_;
  cuda::Recorder recorder_;
  Step last_step_ = Step::none;
  cuda::RowSteps rows_;
  cuda::IndexSelection selection_;
  std::optional<HcPreParams> read_out_;
};

}  // namespace hadal
