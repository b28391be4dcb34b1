#include "ops/training_backend.h"

#include <fmt/format.h>

#include "base/check.h"
#include "ops/cpu/cpu_training_backend.h"

namespace hadal {
namespace {

void check(const CausalAttentionShape& s, const std::int32_t* selected) {
  HADAL_CHECK(s.sequences >= 0 && s.length > 0 && s.heads > 0 && s.dim > 0 && s.window_rows > 0);
  HADAL_CHECK(s.n_rows == s.visible(s.length - 1));
  HADAL_CHECK(selected == nullptr || s.k > 0);
}

}  // namespace

void TrainingBackend::run(const EmbedBackwardParams& p) {
  HADAL_CHECK(p.copies > 0 && p.dim > 0);
  if (!p.tokens.empty()) embed_backward(p);
}

void TrainingBackend::run(const RmsNormBackwardParams& p) {
  HADAL_CHECK(p.rows >= 0 && p.dim > 0);
  if (p.rows > 0) rms_norm_backward(p);
}

void TrainingBackend::run(const CompressBackwardParams& p) {
  HADAL_CHECK(p.ratio > 0 && p.dim > 0 && p.n_blocks * p.ratio <= p.n_tokens);
  if (p.n_tokens > 0) compress_backward(p);
}

void TrainingBackend::run(const CausalAttentionParams& p) {
  check(p.shape, p.selected);
  if (p.shape.sequences > 0) causal_attention(p);
}

void TrainingBackend::run(const CausalAttentionBackwardParams& p) {
  check(p.shape, p.selected);
  if (p.shape.sequences > 0) causal_attention_backward(p);
}

void TrainingBackend::run(const IndexLossParams& p) {
  check(p.shape, p.selected);
  if (p.shape.sequences > 0) index_loss(p);
}

void TrainingBackend::run(const CausalIndexScoresParams& p) {
  check(p.shape, nullptr);
  if (p.shape.sequences > 0 && p.shape.n_rows > 0) causal_index_scores(p);
}

void TrainingBackend::run(const CausalIndexScoresBackwardParams& p) {
  check(p.shape, nullptr);
  if (p.shape.sequences > 0) causal_index_scores_backward(p);
}

void TrainingBackend::run(const HcPreBackwardParams& p) {
  HADAL_CHECK(p.n > 0 && p.n <= 16 && p.dim > 0 && p.sinkhorn_iters > 0);
  if (p.n_tokens > 0) hc_pre_backward(p);
}

void TrainingBackend::run(const HcPostBackwardParams& p) {
  HADAL_CHECK(p.n > 0 && p.n <= 16 && p.dim > 0);
  if (p.n_tokens > 0) hc_post_backward(p);
}

void TrainingBackend::run(const HcHeadBackwardParams& p) {
  HADAL_CHECK(p.n > 0 && p.n <= 16 && p.dim > 0);
  if (p.n_tokens > 0) hc_head_backward(p);
}

void TrainingBackend::run(const GateBackwardParams& p) {
  HADAL_CHECK(p.k > 0 && p.k <= p.n_experts && (p.d_shares == nullptr || p.length > 0));
  if (p.n_tokens > 0) gate_backward(p);
}

void TrainingBackend::run(const SwigluParams& p) {
  HADAL_CHECK(p.rows >= 0 && p.inter > 0);
  if (p.rows > 0) swiglu(p);
}

void TrainingBackend::run(const SwigluBackwardParams& p) {
  HADAL_CHECK(p.rows >= 0 && p.inter > 0);
  if (p.rows > 0) swiglu_backward(p);
}

void TrainingBackend::run(const CrossEntropyParams& p) {
  HADAL_CHECK(p.rows >= 0 && p.vocab > 0);
  if (p.rows > 0) cross_entropy(p);
}

Result<std::unique_ptr<TrainingBackend>> make_training_backend(std::string_view name, std::string_view isa,
                                                               ThreadPool& pool) {
  if (name == "ref") return std::make_unique<ReferenceTrainingBackend>(pool);
  if (name != "cpu") {
    return fail(ErrorCode::unsupported,
                fmt::format("training backend '{}': there are 'ref' and 'cpu'", name));
  }
  HADAL_ASSIGN_OR_RETURN(const cpu::Kernels* kernels, cpu::choose_kernels(isa));
  return std::make_unique<CpuTrainingBackend>(*kernels, pool);
}

}  // namespace hadal
