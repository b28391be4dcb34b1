#include "train/objective.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "base/check.h"
#include "model/rope.h"
#include "train/mtp_layer.h"
#include "train/pass.h"

namespace hadal {
namespace {

RotaryFrequencies compress_frequencies(const Config& config) {
  return {config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling};
}

}  // namespace

struct Objective::Impl {
  Impl(const Config& c, ThreadPool& p, const ObjectiveOptions& o, Communicator* r, std::unique_ptr<Backend> b,
       std::unique_ptr<TrainingBackend> t)
      : config(c), options(o), pool(p), ranks(r), backend(std::move(b)), training(std::move(t)), matmul(p) {}

  // The tokens, targets and angles of a batch, one array each.
  void lay_out(const TrainingBatch& batch);
  void set_angles(const TrainingBatch& batch);
  void quantise_experts(const ParameterSet& weights);
  template <class Body>
  Losses with_pass(const ParameterSet& weights, const TrainingBatch& batch, float scale,
                   ParameterSet* gradients, ParameterSet* expert_gradients, Body&& body);
  Losses run(const ParameterSet& weights, const TrainingBatch& batch, float scale, ParameterSet* gradients,
             ParameterSet* expert_gradients);

  Config config;
  ObjectiveOptions options;
  ThreadPool& pool;
  Communicator* ranks;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<TrainingBackend> training;
  Matmul matmul;
  Arena kept, scratch;
  std::vector<std::int32_t> tokens;                 // [3, N]: t, t + 1, t + 2
  std::vector<std::uint8_t> counts;                 // [3, N]
  std::vector<float> angles;                        // cos and sin of both kinds, [4, N, r/2]
  std::int64_t angles_size = 0, angles_length = 0;  // the batch's shape that they are of
  UntouchedFloats quantised;
  std::vector<std::int64_t> expert_load;
  std::vector<std::int32_t> routing;
  MixingSums mixing_sums;
};

void Objective::Impl::lay_out(const TrainingBatch& batch) {
  const std::int64_t n = batch.n_tokens(), ahead = 1 + config.num_nextn_predict_layers;
  const std::int64_t stride = batch.length + ahead;
  HADAL_CHECK(batch.size > 0 && batch.length > 0);
  HADAL_CHECK(static_cast<std::int64_t>(batch.tokens.size()) == batch.size * stride);
  HADAL_CHECK(batch.counts.empty() || batch.counts.size() == batch.tokens.size());
  HADAL_CHECK(batch.routing.empty() || static_cast<std::int64_t>(batch.routing.size()) ==
                                           config.num_blocks() * n * config.num_experts_per_tok);
  tokens.resize(static_cast<std::size_t>((1 + ahead) * n));
  counts.resize(tokens.size());
  for (std::int64_t shift = 0; shift <= ahead; ++shift) {
    for (std::int64_t i = 0; i < n; ++i) {
      const auto from = static_cast<std::size_t>(i / batch.length * stride + i % batch.length + shift);
      const auto to = static_cast<std::size_t>(shift * n + i);
      HADAL_CHECK(batch.tokens[from] >= 0 && batch.tokens[from] < config.vocab_size);
      tokens[to] = batch.tokens[from];
      counts[to] = batch.counts.empty() ? 1 : batch.counts[from];
    }
  }
  set_angles(batch);
}

void Objective::Impl::set_angles(const TrainingBatch& batch) {
  if (batch.size == angles_size && batch.length == angles_length) return;
  angles_size = batch.size;
  angles_length = batch.length;
  const std::int64_t n = batch.n_tokens(), half = config.qk_rope_head_dim / 2;
  std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) positions[static_cast<std::size_t>(i)] = i % batch.length;
  angles.resize(static_cast<std::size_t>(4 * n * half));
  float* to = angles.data();
  RotaryFrequencies(config.qk_rope_head_dim, config.rope_theta, std::nullopt)
      .angles(positions, to, to + n * half);
  compress_frequencies(config).angles(positions, to + 2 * n * half, to + 3 * n * half);
}

void Objective::Impl::quantise_experts(const ParameterSet& weights) {
  if (quantised.empty()) quantised = UntouchedFloats(weights.values().size());
  for (const Parameter& p : weights.parameters()) {
    if (p.info.role != Role::expert || !weights.placement().holds(p.info)) continue;
    const std::span<const float> from = weights[p];
    float* to = quantised.data() + p.offset;
    std::copy(from.begin(), from.end(), to);
    const std::int64_t rows = p.info.shape[0], in = p.info.shape[1];
    backend->run(QuantiseParams{QuantiseParams::Format::e2m1_32, rows, in, in, to});
  }
}

template <class Body>
Losses Objective::Impl::with_pass(const ParameterSet& weights, const TrainingBatch& batch, float scale,
                                  ParameterSet* gradients, ParameterSet* expert_gradients, Body&& body) {
  HADAL_CHECK(!weights.placement().spread() || ranks != nullptr);
  lay_out(batch);
  const std::int64_t n = batch.n_tokens(), half = config.qk_rope_head_dim / 2;
  expert_load.assign(static_cast<std::size_t>(config.num_blocks() * config.n_routed_experts), 0);
  routing.resize(static_cast<std::size_t>(config.num_blocks() * n * config.num_experts_per_tok));
  mixing_sums = {};
  if (options.fp4) quantise_experts(weights);
  kept.consolidate();  // after the first batch of a shape
  scratch.consolidate();
  const Arena::Scope kept_scope(kept), scratch_scope(scratch);
  Pass pass{config,
            options,
            batch,
            *backend,
            *training,
            matmul,
            pool,
            kept,
            scratch,
            weights,
            options.fp4 ? quantised.data() : nullptr,
            gradients,
            expert_gradients,
            ranks,
            scale,
            {tokens.data(), static_cast<std::size_t>(n)},
            angles.data(),
            angles.data() + n * half,
            angles.data() + 2 * n * half,
            angles.data() + 3 * n * half,
            expert_load,
            routing,
            mixing_sums};
  const Weights& w = weights.weights();
  float* embedded = kept.take<float>(n * config.hc_mult * config.hidden_size);
  backend->run(EmbedParams{pass.tokens, &w.embed, config.hc_mult, embedded});
  std::vector<BlockLayer> blocks;
  blocks.reserve(w.layers.size());
  const float* streams = embedded;
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    blocks.emplace_back(pass, static_cast<std::int64_t>(i), w.layers[i]);
    streams = blocks.back().forward(pass, streams);
  }
  ReadoutLayer readout(w.hc_head, w.norm, w.head);
  return body(pass, blocks, readout, streams);
}

Losses Objective::Impl::run(const ParameterSet& weights, const TrainingBatch& batch, float scale,
                            ParameterSet* gradients, ParameterSet* expert_gradients) {
  return with_pass(
      weights, batch, scale, gradients, expert_gradients,
      [&](Pass& pass, std::vector<BlockLayer>& blocks, ReadoutLayer& readout, const float* streams) {
        const Weights& w = weights.weights();
        const std::int64_t n = pass.n(), d = config.hidden_size, width = config.hc_mult * d;
        Losses losses;
        const ReadoutLayer::Loss ce =
            readout.forward(pass, streams, tokens.data() + n, counts.data() + n, scale);
        losses.ce = ce.mean;
        losses.n_tokens = ce.n_tokens;
        std::optional<MtpLayer> mtp;
        if (!w.mtp.empty()) {
          mtp.emplace(pass, w.mtp[0]);
          const ReadoutLayer::Loss loss =
              mtp->forward(pass, streams, tokens.data() + n, tokens.data() + 2 * n, counts.data() + 2 * n,
                           scale * options.mtp_weight);
          losses.mtp = loss.mean;
          losses.n_mtp_tokens = loss.n_tokens;
        }
        losses.balance = pass.balance;
        losses.index_kl = pass.index_kl;
        losses.total = losses.ce + double{options.mtp_weight} * losses.mtp +
                       double{options.balance_weight} * losses.balance +
                       double{options.index_weight} * losses.index_kl;
        if (gradients == nullptr) return losses;
        if (options.indexer_alone) {
          if (mtp) mtp->backward_indexer(pass);
          for (BlockLayer& block : blocks) block.backward_indexer(pass);
          return losses;
        }
        float* d_streams = kept.take<float>(n * width);
        readout.backward(pass, d_streams);
        if (mtp) mtp->backward(pass, d_streams);
        for (std::size_t i = blocks.size(); i-- > 0;) blocks[i].backward(pass, d_streams);
        training->run(EmbedBackwardParams{pass.tokens, config.hc_mult, d, d_streams,
                                          gradients->twin(weights, pass.values(w.embed))});
        return losses;
      });
}

Result<Objective> Objective::create(const Config& config, ThreadPool& pool, const ObjectiveOptions& options,
                                    Communicator* ranks) {
  if (config.num_nextn_predict_layers > 1) {
    return fail(ErrorCode::unsupported, fmt::format("training with {} MTP blocks: the recipe has at most one "
                                                    "(num_nextn_predict_layers)",
                                                    config.num_nextn_predict_layers));
  }
  if (options.fp4 && (config.hidden_size % 32 != 0 || config.moe_intermediate_size % 32 != 0 ||
                      config.index_head_dim % 32 != 0)) {
    return fail(ErrorCode::unsupported,
                fmt::format("FP4 has one scale for 32 numbers: hidden_size {}, moe_intermediate_size {} and "
                            "index_head_dim {} must be multiples of 32",
                            config.hidden_size, config.moe_intermediate_size, config.index_head_dim));
  }
  HADAL_ASSIGN_OR_RETURN(auto backend, make_backend("cpu", "", pool));
  HADAL_ASSIGN_OR_RETURN(auto training, make_training_backend("cpu", "", pool));
  return Objective(
      std::make_unique<Impl>(config, pool, options, ranks, std::move(backend), std::move(training)));
}

Objective::Objective(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Objective::Objective(Objective&&) noexcept = default;
Objective& Objective::operator=(Objective&&) noexcept = default;
Objective::~Objective() = default;

const ObjectiveOptions& Objective::options() const {
  return impl_->options;
}
void Objective::set_options(const ObjectiveOptions& options) {
  impl_->options = options;
}

Losses Objective::forward_backward(const ParameterSet& weights, const TrainingBatch& batch, float scale,
                                   ParameterSet& gradients, ParameterSet& expert_gradients) {
  return impl_->run(weights, batch, scale, &gradients, &expert_gradients);
}

Losses Objective::evaluate(const ParameterSet& weights, const TrainingBatch& batch) {
  return impl_->run(weights, batch, 1, nullptr, nullptr);
}

void Objective::logits(const ParameterSet& weights, const TrainingBatch& batch, std::span<float> out) {
  HADAL_CHECK(static_cast<std::int64_t>(out.size()) == batch.n_tokens() * impl_->config.vocab_size);
  impl_->with_pass(weights, batch, 1, nullptr, nullptr,
                   [&](Pass& pass, std::vector<BlockLayer>&, ReadoutLayer& readout, const float* streams) {
                     readout.logits(pass, streams, out.data());
                     return Losses{};
                   });
}

std::span<const std::int64_t> Objective::expert_load() const {
  return impl_->expert_load;
}
std::span<const std::int32_t> Objective::routing() const {
  return impl_->routing;
}
const MixingSums& Objective::mixing_sums() const {
  return impl_->mixing_sums;
}
std::int64_t Objective::matmul_flops() const {
  return impl_->matmul.flops();
}
std::int64_t Objective::memory() const {
  return static_cast<std::int64_t>(impl_->kept.reserved_bytes() + impl_->scratch.reserved_bytes());
}

}  // namespace hadal
