#include "train/batch_runner.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

namespace hadal {
namespace {

// Losses as numbers that ranks and parts add up: each loss times the share of the step that it is the mean
// of.
enum : std::size_t { kCe, kMtp, kBalance, kIndexKl, kTokens, kMtpTokens, kNumbers };

double share(std::int64_t of_batch, double of_step) {
  return of_step > 0 ? static_cast<double>(of_batch) / of_step : 0.0;
}

void widen(MixingSums& sums, const MixingSums& others) {
  sums = {std::min(sums.least_row, others.least_row), std::max(sums.most_row, others.most_row),
          std::min(sums.least_column, others.least_column), std::max(sums.most_column, others.most_column)};
}

// Whether so many parts and ranks can do what the recipe asks for.
Status check_parts(const TrainingRecipe& recipe, std::int64_t parts, int ranks) {
  if (recipe.gradient_parts != 1 && ranks != 1 && recipe.gradient_parts != ranks) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} processes, but gradient_parts is {}; start as many, or one", ranks,
                            recipe.gradient_parts));
  }
  if (ranks > 1 && recipe.anticipatory_routing.mode != Anticipation::off) {
    return fail(ErrorCode::unsupported,
                fmt::format("anticipatory_routing.mode is not \"off\", which {} processes cannot do; use one",
                            ranks));
  }
  if (recipe.expert_parallel && ranks > recipe.config.n_routed_experts) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} processes, but expert_parallel has {} routed experts to deal out; use fewer",
                            ranks, recipe.config.n_routed_experts));
  }
  std::vector<std::int64_t> changes;
  for (const RecipeStage& stage : recipe.stages) changes.push_back(stage.from_step);
  for (const BatchRamp& batch : recipe.batch) changes.push_back(std::min(batch.from_step, recipe.steps - 1));
  for (const std::int64_t step : changes) {
    const StepPlan plan = plan_step(recipe, step);
    if (recipe.expert_parallel && plan.sequences % parts != 0) {
      // Ranks meet at every block of every micro-batch.
      return fail(
          ErrorCode::invalid_argument,
          fmt::format(
              "expert_parallel over {} {}, but step {} has {} sequences of {} tokens, which they cannot "
              "share evenly",
              parts, ranks > 1 ? "processes" : "gradient_parts", step, plan.sequences, plan.length));
    }
    if (plan.sequences >= parts) continue;
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("{} {}, but step {} has {} sequences of {} tokens; use fewer or a larger batch", parts,
                    ranks > 1 ? "processes" : "gradient_parts", step, plan.sequences, plan.length));
  }
  return {};
}

}  // namespace

std::vector<double> sum_over_ranks(Communicator& ranks, std::span<const double> values) {
  std::vector<double> sums(values.size());
  for (const std::vector<double>& part : ranks.gather(values))
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += part[i];
  return sums;
}

BatchRunner::BatchRunner(const TrainingRecipe& recipe, Communicator& ranks, ThreadPool& pool,
                         TrainingData data)
    : recipe_(&recipe),
      ranks_(&ranks),
      pool_(&pool),
      n_parts_(ranks.size() > 1 ? ranks.size() : recipe.gradient_parts),
      data_(std::move(data)) {}

Result<BatchRunner> BatchRunner::create(const TrainingRecipe& recipe, Communicator& ranks, ThreadPool& pool) {
  HADAL_ASSIGN_OR_RETURN(TrainingData data, TrainingData::open(recipe.data, recipe.seed));
  BatchRunner runner(recipe, ranks, pool, std::move(data));
  HADAL_RETURN_IF_ERROR(check_parts(recipe, runner.n_parts_, ranks.size()));
  if (!recipe.validation.empty()) {
    const DataSource source{recipe.validation, 1};
    HADAL_ASSIGN_OR_RETURN(runner.validation_, TrainingData::open(std::span(&source, 1), recipe.seed));
  }
  for (const TrainingData* tokens : {&runner.data_, runner.validation_ ? &*runner.validation_ : nullptr}) {
    if (tokens == nullptr) continue;
    if (tokens->vocab_size() > recipe.config.vocab_size) {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("the data has tokens up to {}, but the model's vocab_size is {}",
                              tokens->vocab_size() - 1, recipe.config.vocab_size));
    }
    for (const RecipeStage& stage : recipe.stages)
      HADAL_RETURN_IF_ERROR(tokens->check_length(stage.length + recipe.tokens_ahead()));
  }
  if (ranks.size() == 1) {
    const auto placement =
        recipe.expert_parallel ? ExpertPlacement::nowhere(recipe.config.n_routed_experts) : ExpertPlacement();
    const std::int64_t sets =
        recipe.expert_parallel ? runner.n_parts_ - 1 : std::min<std::int64_t>(runner.n_parts_ - 1, 1);
    for (std::int64_t i = 0; i < sets; ++i) runner.of_parts_.emplace_back(recipe.config, placement);
  }
  return runner;
}

Status BatchRunner::prepare(const StepPlan& plan) {
  if (!objective_ || objective_stage_ != plan.stage) {
    objective_.reset();
    HADAL_ASSIGN_OR_RETURN(Objective made,
                           Objective::create(stage_config(*recipe_, plan.stage), *pool_, {}, ranks_));
    objective_.emplace(std::move(made));
    objective_stage_ = plan.stage;
  }
  ObjectiveOptions o;
  o.precision = recipe_->precision;
  o.sparse = plan.attention == StageAttention::sparse;
  o.index_loss = plan.attention != StageAttention::dense;
  o.indexer_alone = plan.attention == StageAttention::indexer;
  o.mtp_weight = static_cast<float>(plan.mtp_weight);
  o.balance_weight = static_cast<float>(recipe_->loss.balance);
  o.index_weight = static_cast<float>(recipe_->loss.index);
  o.fp4 = plan.fp4;
  objective_->set_options(o);
  return {};
}

template <class Read>
BatchRunner::Batch BatchRunner::read_batch(std::int64_t size, std::int64_t length, bool masked,
                                           Read&& read) const {
  const auto span = static_cast<std::size_t>(length + recipe_->tokens_ahead());
  Batch batch;
  batch.size = size;
  batch.tokens.resize(static_cast<std::size_t>(size) * span);
  if (masked) batch.counts.resize(batch.tokens.size());
  for (std::int64_t i = 0; i < size; ++i) {
    const auto at = static_cast<std::size_t>(i) * span;
    const auto counts = masked ? std::span(batch.counts).subspan(at, span) : std::span<std::uint8_t>();
    read(i, std::span(batch.tokens).subspan(at, span), counts);
    if (!masked) continue;
    const auto sum = [&](std::size_t from) {
      const auto part = counts.subspan(from, static_cast<std::size_t>(length));
      return std::accumulate(part.begin(), part.end(), std::int64_t{0});
    };
    batch.n_tokens += sum(1);
    if (recipe_->config.num_nextn_predict_layers > 0) batch.n_mtp_tokens += sum(2);
  }
  if (!masked) batch.n_tokens = batch.n_mtp_tokens = size * length;
  return batch;
}

BatchRunner::Batch BatchRunner::training_batch(const StepPlan& plan, std::int64_t first,
                                               std::int64_t size) const {
  return read_batch(size, plan.length, data_.masked(), [&](std::int64_t i, auto tokens, auto counts) {
    data_.sequence(plan.stage, plan.first_sequence + first + i, plan.length, tokens, counts);
  });
}

TrainingBatch BatchRunner::view(const Batch& batch, std::int64_t length) {
  TrainingBatch out;
  out.size = batch.size;
  out.length = length;
  out.tokens = batch.tokens;
  out.counts = batch.counts;
  return out;
}

std::pair<std::int64_t, std::int64_t> BatchRunner::own_parts() const {
  if (ranks_->size() == 1) return {0, n_parts_};
  return {ranks_->rank(), ranks_->rank() + 1};
}
// A part after the other; where experts are parallel, the first micro-batch of every part, then the second:
// as ranks take them side by side.
std::vector<BatchRunner::Slice> BatchRunner::slices(const StepPlan& plan) const {
  std::vector<Slice> all;
  const auto [first_part, last_part] = own_parts();
  for (std::int64_t part = first_part; part < last_part; ++part) {
    const std::int64_t begin = plan.sequences * part / n_parts_, end = plan.sequences * (part + 1) / n_parts_;
    for (std::int64_t first = begin; first < end; first += plan.micro_batch) {
      const std::int64_t size = std::min(plan.micro_batch, end - first);
      all.push_back({part, first, size, first == begin, first + size == end});
    }
  }
  if (recipe_->expert_parallel) {
    const auto offset = [&](const Slice& s) { return s.first - plan.sequences * s.part / n_parts_; };
    std::stable_sort(all.begin(), all.end(),
                     [&](const Slice& a, const Slice& b) { return offset(a) < offset(b); });
  }
  return all;
}

// Adds a micro-batch's gradient to `gradients`, that of routed experts to `expert_gradients`. Each loss is
// the mean over the whole step of what it is about, so a batch weighs by its share: of the tokens that count,
// of those that count for MTP, of the sequences. The objective knows one scale, that of the cross-entropy;
// the weights of the other losses make up for the difference.
void BatchRunner::run_batch(const StepPlan& plan, const Batch& batch, std::span<const double> of_step,
                            const ParameterSet& weights, std::span<const std::int32_t>& routing,
                            ParameterSet& gradients, ParameterSet& expert_gradients,
                            std::vector<double>& losses, StepGradient& result) {
  const ObjectiveOptions options = objective_->options();
  TrainingBatch input = view(batch, plan.length);
  if (!routing.empty()) {
    const auto size = static_cast<std::size_t>(recipe_->config.num_blocks() * input.n_tokens() *
                                               recipe_->config.num_experts_per_tok);
    input.routing = routing.first(size);
    routing = routing.subspan(size);
  }
  const double of_sequences = static_cast<double>(batch.size) / static_cast<double>(plan.sequences);
  // A batch without a token that counts still has sequences to balance.
  const double of_tokens = batch.n_tokens > 0 ? share(batch.n_tokens, of_step[0]) : of_sequences;
  const double of_mtp = share(batch.n_mtp_tokens, of_step[1]);
  ObjectiveOptions weighted = options;
  weighted.mtp_weight = static_cast<float>(plan.mtp_weight * (of_mtp / of_tokens));
  weighted.balance_weight = static_cast<float>(recipe_->loss.balance * (of_sequences / of_tokens));
  weighted.index_weight = static_cast<float>(recipe_->loss.index * (of_sequences / of_tokens));
  objective_->set_options(weighted);
  const Losses part = objective_->forward_backward(weights, input, static_cast<float>(of_tokens), gradients,
                                                   expert_gradients);
  objective_->set_options(options);
  losses[kCe] += of_tokens * part.ce;
  losses[kMtp] += of_mtp * part.mtp;
  losses[kBalance] += of_sequences * part.balance;
  losses[kIndexKl] += of_sequences * part.index_kl;
  losses[kTokens] += static_cast<double>(part.n_tokens);
  losses[kMtpTokens] += static_cast<double>(part.n_mtp_tokens);
  const auto load = objective_->expert_load();
  for (std::size_t i = 0; i < load.size(); ++i) result.load[i] += load[i];
  widen(result.mixing, objective_->mixing_sums());
}

StepGradient BatchRunner::forward_backward(const StepPlan& plan, const ParameterSet& weights,
                                           std::span<const std::int32_t> routing,
                                           std::span<const Shard> shards, ParameterSet& gradients) {
  StepGradient result;
  result.load.resize(
      static_cast<std::size_t>(recipe_->config.num_blocks() * recipe_->config.n_routed_experts));
  const std::vector<Slice> own = slices(plan);
  std::vector<Batch> batches;
  double counted[2] = {};
  for (const Slice& slice : own) {
    batches.push_back(training_batch(plan, slice.first, slice.size));
    counted[0] += static_cast<double>(batches.back().n_tokens);
    counted[1] += static_cast<double>(batches.back().n_mtp_tokens);
  }
  const std::vector<double> of_step = sum_over_ranks(*ranks_, counted);

  const std::int64_t first_part = own_parts().first;
  std::vector<double> sums(kNumbers);
  std::vector<std::vector<double>> losses(static_cast<std::size_t>(n_parts_), std::vector<double>(kNumbers));
  gradients.clear(*pool_);
  for (std::size_t i = 0; i < own.size(); ++i) {
    const Slice& slice = own[i];
    const bool first = slice.part == first_part;
    ParameterSet& of_part = first ? gradients : gradient_of_part(slice.part);
    if (slice.opens && !first) of_part.clear(*pool_);
    std::vector<double>& losses_of_part = losses[static_cast<std::size_t>(slice.part)];
    run_batch(plan, batches[i], of_step, weights, routing, of_part,
              recipe_->expert_parallel ? gradients : of_part, losses_of_part, result);
    if (!slice.closes) continue;
    for (std::size_t k = 0; k < sums.size(); ++k) sums[k] += losses_of_part[k];
    if (!first) gradients.add(of_part, *pool_);
  }
  if (ranks_->size() > 1) {
    ranks_->sum_to_owners(shards, gradients.values().data());
    for (const Shard& s : shards) {
      if (s.owner != ranks_->rank()) std::fill_n(gradients.values().data() + s.offset, s.size, 0.0F);
    }
    for (const std::int64_t n : result.load) sums.push_back(static_cast<double>(n));
    sums = sum_over_ranks(*ranks_, sums);
    for (std::size_t i = 0; i < result.load.size(); ++i)
      result.load[i] = static_cast<std::int64_t>(sums[kNumbers + i]);
    for (const auto& theirs : ranks_->gather(std::span<const MixingSums>(&result.mixing, 1)))
      widen(result.mixing, theirs[0]);
  }
  const double total = sums[kCe] + plan.mtp_weight * sums[kMtp] + recipe_->loss.balance * sums[kBalance] +
                       recipe_->loss.index * sums[kIndexKl];
  result.losses = {sums[kCe],
                   sums[kMtp],
                   sums[kBalance],
                   sums[kIndexKl],
                   total,
                   static_cast<std::int64_t>(sums[kTokens]),
                   static_cast<std::int64_t>(sums[kMtpTokens])};
  return result;
}

std::vector<std::int32_t> BatchRunner::route(const StepPlan& plan, const ParameterSet& weights) {
  std::vector<std::int32_t> routing;
  for (const Slice& slice : slices(plan)) {
    const Batch batch = training_batch(plan, slice.first, slice.size);
    objective_->evaluate(weights, view(batch, plan.length));
    routing.insert(routing.end(), objective_->routing().begin(), objective_->routing().end());
  }
  return routing;
}

Losses BatchRunner::evaluate(const StepPlan& plan, const ParameterSet& weights) {
  const std::int64_t windows = recipe_->evaluation.windows, rank = ranks_->rank(), size = ranks_->size();
  const auto read = [&](std::int64_t first, std::int64_t n) {
    return read_batch(n, plan.length, validation_->masked(), [&](std::int64_t i, auto tokens, auto counts) {
      validation_->held_out(first + i, windows, plan.length, tokens, counts);
    });
  };
  const std::int64_t begin = windows * rank / size, end = windows * (rank + 1) / size;
  // Where experts are spread, a rank that is done still answers for its own: it takes some window once more.
  const std::int64_t most = (windows + size - 1) / size;
  std::vector<double> sums(kNumbers);
  for (std::int64_t done = 0; done < most; done += plan.micro_batch) {
    const std::int64_t n = std::min(plan.micro_batch, end - begin - done);
    if (n <= 0) {
      if (weights.placement().spread()) objective_->evaluate(weights, view(read(0, 1), plan.length));
      continue;
    }
    const Batch batch = read(begin + done, n);
    const Losses part = objective_->evaluate(weights, view(batch, plan.length));
    sums[kTokens] += static_cast<double>(part.n_tokens);
    sums[kMtpTokens] += static_cast<double>(part.n_mtp_tokens);
    sums[kCe] += part.ce * static_cast<double>(part.n_tokens);
    sums[kMtp] += part.mtp * static_cast<double>(part.n_mtp_tokens);
    sums[kBalance] += part.balance * static_cast<double>(batch.size);
    sums[kIndexKl] += part.index_kl * static_cast<double>(batch.size);
  }
  sums = sum_over_ranks(*ranks_, sums);
  Losses mean;
  mean.n_tokens = static_cast<std::int64_t>(sums[kTokens]);
  mean.n_mtp_tokens = static_cast<std::int64_t>(sums[kMtpTokens]);
  mean.ce = sums[kCe] / std::max(sums[kTokens], 1.0);
  mean.mtp = sums[kMtp] / std::max(sums[kMtpTokens], 1.0);
  mean.balance = sums[kBalance] / static_cast<double>(windows);
  mean.index_kl = sums[kIndexKl] / static_cast<double>(windows);
  mean.total = mean.ce + plan.mtp_weight * mean.mtp;
  return mean;
}

std::int64_t BatchRunner::memory() const {
  std::int64_t bytes = objective_ ? objective_->memory() : 0;
  for (const ParameterSet& set : of_parts_) bytes += set.held() * std::int64_t{sizeof(float)};
  return bytes;
}

}  // namespace hadal
