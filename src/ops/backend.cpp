#include "ops/backend.h"

#include <bit>

#include <fmt/format.h>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/ref/reference_backend.h"
#ifdef HADAL_CUDA
#include "ops/cuda/cuda_backend.h"
#endif

namespace hadal {

void Backend::run(const EmbedParams& p) {
  HADAL_CHECK(p.embed != nullptr && p.copies > 0 && (p.out != nullptr || p.tokens.empty()));
  if (!p.tokens.empty()) dispatch(&Backend::embed, p);
}

void Backend::run(const RmsNormParams& p) {
  HADAL_CHECK(p.rows >= 0 && p.dim > 0);
  if (p.rows > 0) dispatch(&Backend::rms_norm, p);
}

void Backend::run(const LayerNormParams& p) {
  HADAL_CHECK(p.rows >= 0 && p.dim > 0 && p.weight != nullptr && p.bias != nullptr);
  if (p.rows > 0) dispatch(&Backend::layer_norm, p);
}

void Backend::run(const LinearParams& p) {
  HADAL_CHECK(p.n_tokens >= 0 && p.weight != nullptr && p.weight->weight != nullptr);
  HADAL_CHECK(p.groups > 0 && p.weight->out % p.groups == 0);
  HADAL_CHECK(!p.weight->quantised() || p.weight->scale != nullptr);
  HADAL_CHECK(p.weight->format != Linear::Format::fp4 || p.weight->in % 32 == 0);
  HADAL_CHECK(p.rounding == InputRounding::none || p.rounding == InputRounding::bf16 ||
              !p.weight->quantised() || p.weight->in % 128 == 0);
  if (p.n_tokens > 0) dispatch(&Backend::linear, p);
}

void Backend::run(const AnglesParams& p) {
  HADAL_CHECK(!p.frequencies.empty());
  if (!p.positions.empty()) dispatch(&Backend::angles, p);
}

void Backend::run(const RopeParams& p) {
  HADAL_CHECK(p.rope_dim > 0 && p.rope_dim % 2 == 0 && p.rope_dim <= p.dim);
  if (p.n_tokens > 0) dispatch(&Backend::rope, p);
}

void Backend::run(const QuantiseParams& p) {
  const std::int64_t block = p.format == QuantiseParams::Format::e4m3_64   ? 64
                             : p.format == QuantiseParams::Format::e2m1_32 ? 32
                                                                           : 128;
  HADAL_CHECK(p.quantised_dim <= p.dim && p.quantised_dim % block == 0);
  if (p.rows > 0) dispatch(&Backend::quantise, p);
}

void Backend::run(const RoundBf16Params& p) {
  HADAL_CHECK(p.begin >= 0 && p.begin <= p.dim);
  if (p.rows > 0 && p.begin < p.dim) dispatch(&Backend::round_bf16, p);
}

void Backend::run(const ScaleParams& p) {
  if (p.count > 0) dispatch(&Backend::scale, p);
}

void Backend::run(const AddRowsParams& p) {
  HADAL_CHECK(p.repeat > 0 && p.rows % p.repeat == 0);
  if (p.rows > 0) dispatch(&Backend::add_rows, p);
}

void Backend::run(const GatherRowsParams& p) {
  if (!p.rows.empty()) dispatch(&Backend::gather_rows, p);
}

void Backend::run(const HadamardParams& p) {
  HADAL_CHECK(std::has_single_bit(static_cast<std::uint64_t>(p.dim)));
  if (p.rows > 0) dispatch(&Backend::hadamard, p);
}

void Backend::run(const CompressParams& p) {
  HADAL_CHECK(p.ratio > 0 && p.dim > 0 && (p.overlap || !p.has_previous));
  if (p.n_blocks > 0) dispatch(&Backend::compress, p);
}

void Backend::run(const CompressTokensParams& p) {
  HADAL_CHECK(p.ratio > 0 && p.dim > 0 && !p.segments.empty());
  dispatch(&Backend::compress_tokens, p);
}

void Backend::run(const StoreRowsParams& p) {
  if (!p.places.empty()) dispatch(&Backend::store_rows, p);
}

void Backend::run(const IndexScoresParams& p) {
  HADAL_CHECK(static_cast<std::int64_t>(p.visible.size()) == p.n_tokens && p.rows.shape.dim == p.dim);
  if (p.n_tokens > 0) dispatch(&Backend::index_scores, p);
}

void Backend::run(const IndexSelectParams& p) {
  HADAL_CHECK(static_cast<std::int64_t>(p.visible.size()) == p.n_tokens && p.rows.shape.dim == p.dim);
  HADAL_CHECK(p.k > 0);
  if (p.n_tokens > 0) dispatch(&Backend::index_select, p);
}

void Backend::run(const SparseAttentionParams& p) {
  HADAL_CHECK(p.n_tokens == 0 ||
              (!p.segments.empty() && p.segments.back().begin + p.segments.back().count == p.n_tokens));
  HADAL_CHECK(p.visible.empty() || static_cast<std::int64_t>(p.visible.size()) == p.n_tokens);
  HADAL_CHECK(p.window_rows > 0 || !p.visible.empty());
  HADAL_CHECK(p.values() <= p.row.dim);
  if (p.n_tokens > 0) dispatch(&Backend::sparse_attention, p);
}

void Backend::run(const HcPreParams& p) {
  HADAL_CHECK(p.n > 0 && p.n <= 16 && p.dim > 0 && p.sinkhorn_iters > 0);
  if (p.n_tokens > 0) dispatch(&Backend::hc_pre, p);
}

void Backend::run(const HcPostParams& p) {
  HADAL_CHECK(p.n > 0 && p.n <= 16 && p.dim > 0);
  if (p.n_tokens > 0) dispatch(&Backend::hc_post, p);
}

void Backend::run(const HcHeadParams& p) {
  HADAL_CHECK(p.n > 0 && p.n <= 16 && p.dim > 0);
  if (p.n_tokens > 0) dispatch(&Backend::hc_head, p);
}

void Backend::run(const GateParams& p) {
  HADAL_CHECK((p.bias == nullptr) != (p.table == nullptr) && p.k > 0 && p.k <= p.n_experts);
  HADAL_CHECK(p.table == nullptr || static_cast<std::int64_t>(p.tokens.size()) == p.n_tokens);
  HADAL_CHECK(p.n_group == 1 || (p.table == nullptr && p.n_experts % p.n_group == 0));
  if (p.n_tokens > 0) dispatch(&Backend::gate, p);
}

void Backend::run(const ExpertsParams& p) {
  HADAL_CHECK(static_cast<std::int64_t>(p.experts.size()) >= p.k && (p.k > 0 || p.shared != nullptr));
  if (p.n_tokens > 0) dispatch(&Backend::experts, p);
}

Result<std::unique_ptr<Backend>> make_backend(std::string_view name, std::string_view isa, ThreadPool& pool) {
  if (name == "ref") return std::make_unique<ReferenceBackend>(pool);
  if (name == "cuda") {
#ifdef HADAL_CUDA
    return CudaBackend::make();
#else
    return fail(ErrorCode::unsupported,
                "backend 'cuda': this build has none; configure with -DHADAL_CUDA=ON");
#endif
  }
  if (name != "cpu") {
    return fail(ErrorCode::unsupported, fmt::format("backend '{}': there are 'cpu', 'cuda' and 'ref'", name));
  }
  HADAL_ASSIGN_OR_RETURN(const cpu::Kernels* kernels, cpu::choose_kernels(isa));
  return std::make_unique<CpuBackend>(*kernels, pool);
}

}  // namespace hadal
