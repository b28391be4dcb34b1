#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "train/data.h"
#include "train/initial_weights.h"
#include "train/optimizer.h"
#include "train/run_directory.h"
#include "train/snapshot.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

OptimizerOptions optimizer_options(const TrainingRecipe& recipe) {
  const auto& o = recipe.optimizer;
  OptimizerOptions options;
  options.muon = o.kind == OptimizerKind::muon;
  options.muon_options = {static_cast<float>(o.momentum), static_cast<float>(o.weight_decay),
                          static_cast<float>(o.gamma), o.newton_schulz};
  options.adamw = {static_cast<float>(o.beta1), static_cast<float>(o.beta2), static_cast<float>(o.epsilon),
                   static_cast<float>(o.weight_decay)};
  options.clip_norm = o.clip_norm;
  return options;
}

// Adds the means of a part that has `share` of the tokens to those of the whole.
void add_share(Losses& sum, const Losses& part, double share, double mtp_share) {
  sum.ce += share * part.ce;
  sum.mtp += mtp_share * part.mtp;
  sum.balance += share * part.balance;
  sum.index_kl += share * part.index_kl;
  sum.total += share * part.total;
  sum.n_tokens += part.n_tokens;
  sum.n_mtp_tokens += part.n_mtp_tokens;
}

// The first loss that is not a number, by name; null: none.
const char* not_finite(const Losses& losses) {
  if (!std::isfinite(losses.ce)) return "cross-entropy";
  if (!std::isfinite(losses.mtp)) return "MTP loss";
  if (!std::isfinite(losses.balance)) return "balance loss";
  if (!std::isfinite(losses.index_kl)) return "indexer's loss";
  return std::isfinite(losses.total) ? nullptr : "total loss";
}

}  // namespace

struct Trainer::Impl {
  TrainingRecipe recipe;
  TrainerOptions options;
  ThreadPool& pool;
  std::optional<RunLock> lock;  // of the first rank
  TrainingData data;
  std::optional<TrainingData> validation;
  ParameterSet weights, gradients;
  Optimizer optimizer;
  TrainerState state;
  std::uint64_t hash;
  std::optional<Objective> objective;
  std::size_t objective_stage = 0;
  std::optional<MetricsFile> metrics;  // of the first rank
  // Of several ranks: who updates which parameter, in the weights and in the second moments.
  std::vector<Segment> segments = {}, second_segments = {};
  std::vector<bool> mine = {};  // by parameter
  Alone alone = {};

  Communicator& ranks() { return options.communicator != nullptr ? *options.communicator : alone; }
  bool first_rank() { return ranks().rank() == 0; }
  // This rank's part of n things in a row.
  std::pair<std::int64_t, std::int64_t> part_of(std::int64_t n) {
    const std::int64_t rank = ranks().rank(), size = ranks().size();
    return {n * rank / size, n * (rank + 1) / size};
  }
  // Sums over all ranks, in the order of ranks.
  std::vector<double> summed(const std::vector<double>& values) {
    std::vector<double> sums(values.size());
    for (const std::vector<double>& part : ranks().gather(std::span<const double>(values)))
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += part[i];
    return sums;
  }
  void deal_out_parameters() {
    const int size = ranks().size();
    if (size == 1) return;
    const std::vector<int> owners = deal_out(optimizer.costs(), size);
    const auto parameters = weights.parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& p = parameters[i];
      mine.push_back(owners[i] == ranks().rank());
      segments.push_back({p.offset, p.size, owners[i]});
      if (optimizer.second_offset(i) >= 0)
        second_segments.push_back({optimizer.second_offset(i), p.size, owners[i]});
    }
  }

  void notice(const std::string& text) const {
    if (options.notice) options.notice(text);
  }
  std::string last_snapshot() const {
    const auto steps = list_snapshots(options.run);
    return steps.empty() ? "there is no snapshot yet"
                         : fmt::format("the snapshot of step {} is kept", steps.back());
  }

  Status prepare_objective(const StepPlan& plan) {
    if (!objective || objective_stage != plan.stage) {
      objective.reset();
      HADAL_ASSIGN_OR_RETURN(Objective made, Objective::create(stage_config(recipe, plan.stage), pool));
      objective.emplace(std::move(made));
      objective_stage = plan.stage;
    }
    ObjectiveOptions o;
    o.precision = recipe.precision;
    o.sparse = plan.attention == StageAttention::sparse;
    o.index_loss = plan.attention != StageAttention::dense;
    o.indexer_alone = plan.attention == StageAttention::indexer;
    o.mtp_weight = static_cast<float>(plan.mtp_weight);
    o.balance_weight = static_cast<float>(recipe.loss.balance);
    o.index_weight = static_cast<float>(recipe.loss.index);
    o.fp4 = plan.fp4;
    objective->set_options(o);
    return {};
  }

  // Sequences of a step, cut into what one forward takes.
  struct Batch {
    std::vector<std::int32_t> tokens;  // [sequences, length + ahead]
    std::vector<std::uint8_t> counts;  // likewise, or empty
    std::int64_t counted = 0;          // tokens whose prediction counts
    std::int64_t counted_mtp = 0;
  };
  template <class Read>
  Batch read_batch(std::int64_t sequences, std::int64_t length, bool masked, Read&& read) const {
    const auto span = static_cast<std::size_t>(length + recipe.tokens_ahead());
    Batch batch;
    batch.tokens.resize(static_cast<std::size_t>(sequences) * span);
    if (masked) batch.counts.resize(batch.tokens.size());
    for (std::int64_t i = 0; i < sequences; ++i) {
      const auto at = static_cast<std::size_t>(i) * span;
      const auto counts = masked ? std::span(batch.counts).subspan(at, span) : std::span<std::uint8_t>();
      read(i, std::span(batch.tokens).subspan(at, span), counts);
      if (!masked) continue;
      const auto sum = [&](std::size_t from) {
        const auto part = counts.subspan(from, static_cast<std::size_t>(length));
        return std::accumulate(part.begin(), part.end(), std::int64_t{0});
      };
      batch.counted += sum(1);
      if (recipe.config.num_nextn_predict_layers > 0) batch.counted_mtp += sum(2);
    }
    if (!masked) batch.counted = batch.counted_mtp = sequences * length;
    return batch;
  }
  Batch training_batch(const StepPlan& plan, std::int64_t first, std::int64_t sequences) const {
    return read_batch(sequences, plan.length, data.masked(), [&](std::int64_t i, auto tokens, auto counts) {
      data.sequence(plan.stage, plan.first_sequence + first + i, plan.length, tokens, counts);
    });
  }
  static TrainingBatch view(const Batch& batch, std::int64_t sequences, std::int64_t length) {
    TrainingBatch out;
    out.size = sequences;
    out.length = length;
    out.tokens = batch.tokens;
    out.counts = batch.counts;
    return out;
  }

  // Where the tokens of a future step go by the present weights: the routings of its forwards, one behind the
  // other. Empty, the router's own choice, for a step of another stage.
  std::vector<std::int32_t> anticipate(const StepPlan& now, std::int64_t step) {
    if (step >= recipe.steps) return {};
    const StepPlan plan = plan_step(recipe, step);
    if (plan.stage != now.stage) return {};
    std::vector<std::int32_t> routing;
    for (std::int64_t first = 0; first < plan.sequences; first += plan.micro_batch) {
      const std::int64_t n = std::min(plan.micro_batch, plan.sequences - first);
      const Batch batch = training_batch(plan, first, n);
      objective->evaluate(weights, view(batch, n, plan.length));
      routing.insert(routing.end(), objective->routing().begin(), objective->routing().end());
    }
    return routing;
  }
  bool anticipates(std::int64_t step) const {
    return recipe.anticipatory_routing.mode == Anticipation::always || step < state.anticipate_until;
  }
  // Leaves the routings of this step and the `delay` - 1 after it in state.routing, and one more for the step
  // `delay` ahead, which the present weights give; or nothing where routing is not anticipated.
  void queue_routing(const StepPlan& plan) {
    const std::int64_t delay = recipe.anticipatory_routing.delay;
    if (!anticipates(plan.step)) {
      state.routing.clear();
      return;
    }
    // At the start the steps that nobody looked ahead to take the present weights.
    while (static_cast<std::int64_t>(state.routing.size()) <= delay)
      state.routing.push_back(anticipate(plan, plan.step + static_cast<std::int64_t>(state.routing.size())));
  }

  struct Gradient {
    Losses losses;
    std::vector<std::int64_t> load;  // [num_blocks, n_routed_experts]
    MixingSums mixing;
  };
  Gradient forward_backward(const StepPlan& plan) {
    Gradient result;
    result.load.resize(static_cast<std::size_t>(recipe.config.num_blocks() * recipe.config.n_routed_experts));
    gradients.clear();
    const auto [begin, end] = part_of(plan.sequences);
    std::vector<Batch> batches;
    double counted = 0, counted_mtp = 0;
    for (std::int64_t first = begin; first < end; first += plan.micro_batch) {
      batches.push_back(training_batch(plan, first, std::min(plan.micro_batch, end - first)));
      counted += static_cast<double>(batches.back().counted);
      counted_mtp += static_cast<double>(batches.back().counted_mtp);
    }
    const std::vector<double> of_all = summed({counted, counted_mtp});
    std::span<const std::int32_t> routing;
    if (!state.routing.empty()) routing = state.routing.front();
    std::int64_t first = begin;
    for (const Batch& batch : batches) {
      const std::int64_t n = std::min(plan.micro_batch, end - first);
      first += n;
      TrainingBatch part = view(batch, n, plan.length);
      if (!routing.empty()) {
        const auto size = static_cast<std::size_t>(recipe.config.num_blocks() * part.n_tokens() *
                                                   recipe.config.num_experts_per_tok);
        part.routing = routing.first(size);
        routing = routing.subspan(size);
      }
      // The step's loss is a mean over all its tokens that count: a part weighs by how many it has.
      const auto share = [](std::int64_t of_part, double of_step) {
        return of_step > 0 ? static_cast<double>(of_part) / of_step : 0.0;
      };
      const double weight = share(batch.counted, of_all[0]);
      const Losses losses = objective->forward_backward(weights, part, static_cast<float>(weight), gradients);
      add_share(result.losses, losses, weight, share(batch.counted_mtp, of_all[1]));
      const auto load = objective->expert_load();
      for (std::size_t i = 0; i < load.size(); ++i) result.load[i] += load[i];
      const MixingSums& sums = objective->mixing_sums();
      result.mixing = {std::min(result.mixing.least_row, sums.least_row),
                       std::max(result.mixing.most_row, sums.most_row),
                       std::min(result.mixing.least_column, sums.least_column),
                       std::max(result.mixing.most_column, sums.most_column)};
    }
    if (ranks().size() > 1) combine(result);
    return result;
  }

  // The parts of all ranks as one: losses and load everywhere, the gradient of a parameter at its owner and
  // zero elsewhere.
  void combine(Gradient& result) {
    ranks().sum_to_owners(segments, gradients.values().data());
    for (std::size_t i = 0; i < segments.size(); ++i) {
      if (!mine[i]) std::fill_n(gradients.values().data() + segments[i].offset, segments[i].size, 0.0F);
    }
    const Losses& own = result.losses;
    std::vector<double> sums = {own.ce,
                                own.mtp,
                                own.balance,
                                own.index_kl,
                                own.total,
                                static_cast<double>(own.n_tokens),
                                static_cast<double>(own.n_mtp_tokens)};
    const std::size_t n_losses = sums.size();
    for (const std::int64_t n : result.load) sums.push_back(static_cast<double>(n));
    sums = summed(sums);
    result.losses = {sums[0],
                     sums[1],
                     sums[2],
                     sums[3],
                     sums[4],
                     static_cast<std::int64_t>(sums[5]),
                     static_cast<std::int64_t>(sums[6])};
    for (std::size_t i = 0; i < result.load.size(); ++i)
      result.load[i] = static_cast<std::int64_t>(sums[n_losses + i]);
    for (const std::vector<MixingSums>& theirs :
         ranks().gather(std::span<const MixingSums>(&result.mixing, 1))) {
      result.mixing.least_row = std::min(result.mixing.least_row, theirs[0].least_row);
      result.mixing.most_row = std::max(result.mixing.most_row, theirs[0].most_row);
      result.mixing.least_column = std::min(result.mixing.least_column, theirs[0].least_column);
      result.mixing.most_column = std::max(result.mixing.most_column, theirs[0].most_column);
    }
  }
  double norm_of_gradient() {
    const double norm = gradient_norm(gradients, pool);
    return ranks().size() == 1 ? norm : std::sqrt(summed({norm * norm})[0]);
  }

  // bias_i += speed for an expert that got fewer tokens than the mean, else -= speed.
  void balance_experts(std::span<const std::int64_t> load) {
    const auto experts = static_cast<std::size_t>(recipe.config.n_routed_experts);
    const auto speed = static_cast<float>(recipe.bias_update_speed);
    for (const Parameter& p : weights.parameters()) {
      if (p.info.role != Role::router_bias) continue;
      const auto of_block = load.subspan(static_cast<std::size_t>(p.info.block) * experts, experts);
      const std::int64_t total = std::accumulate(of_block.begin(), of_block.end(), std::int64_t{0});
      const auto bias = weights[p];
      for (std::size_t i = 0; i < experts; ++i)
        bias[i] += of_block[i] * recipe.config.n_routed_experts < total ? speed : -speed;
    }
  }

  void describe_load(std::span<const std::int64_t> load, StepMetrics& metrics_of_step) const {
    const auto experts = static_cast<std::size_t>(recipe.config.n_routed_experts);
    metrics_of_step.load_min = static_cast<double>(experts);
    for (std::size_t block = 0; block * experts < load.size(); ++block) {
      if (recipe.config.hash_routed(static_cast<std::int64_t>(block))) continue;
      const auto part = load.subspan(block * experts, experts);
      const auto total = static_cast<double>(std::accumulate(part.begin(), part.end(), std::int64_t{0}));
      if (total == 0) continue;
      const auto [least, most] = std::minmax_element(part.begin(), part.end());
      const auto relative = [&](std::int64_t n) {
        return static_cast<double>(n) * static_cast<double>(experts) / total;
      };
      metrics_of_step.load_max = std::max(metrics_of_step.load_max, relative(*most));
      metrics_of_step.load_min = std::min(metrics_of_step.load_min, relative(*least));
    }
  }

  Result<Losses> evaluate() {
    if (!validation) return fail(ErrorCode::invalid_argument, "data.validation names nothing to evaluate on");
    const StepPlan plan = plan_step(recipe, std::min(state.step, recipe.steps - 1));
    HADAL_RETURN_IF_ERROR(prepare_objective(plan));
    const std::int64_t windows = recipe.evaluation.windows;
    const auto [begin, end] = part_of(windows);
    std::vector<double> sums(6);
    for (std::int64_t first = begin; first < end; first += plan.micro_batch) {
      const std::int64_t n = std::min(plan.micro_batch, end - first);
      const Batch batch =
          read_batch(n, plan.length, validation->masked(), [&](std::int64_t i, auto tokens, auto counts) {
            validation->held_out(first + i, windows, plan.length, tokens, counts);
          });
      const Losses part = objective->evaluate(weights, view(batch, n, plan.length));
      const auto tokens = static_cast<double>(part.n_tokens),
                 mtp_tokens = static_cast<double>(part.n_mtp_tokens);
      const double of_part[] = {tokens,
                                mtp_tokens,
                                part.ce * tokens,
                                part.mtp * mtp_tokens,
                                part.balance * static_cast<double>(n),
                                part.index_kl * static_cast<double>(n)};
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += of_part[i];
    }
    sums = summed(sums);
    Losses mean;
    mean.n_tokens = static_cast<std::int64_t>(sums[0]);
    mean.n_mtp_tokens = static_cast<std::int64_t>(sums[1]);
    mean.ce = sums[2] / std::max(sums[0], 1.0);
    mean.mtp = sums[3] / std::max(sums[1], 1.0);
    mean.balance = sums[4] / static_cast<double>(windows);
    mean.index_kl = sums[5] / static_cast<double>(windows);
    mean.total = mean.ce + plan.mtp_weight * mean.mtp;
    return mean;
  }

  Status snapshot() {
    ranks().share(segments, optimizer.state().first.values().data());
    ranks().share(second_segments, optimizer.state().second.data());
    if (!first_rank()) return agree(ranks(), {});
    const Status written = write_snapshot(options.run, hash, state, weights, optimizer.state());
    if (written) prune_snapshots(options.run, recipe.snapshot.keep);
    return agree(ranks(), written);
  }

  // The latest snapshot that is sound; false: there is none at all.
  Result<bool> restore() {
    auto steps = list_snapshots(options.run);
    for (auto at = steps.rbegin(); at != steps.rend(); ++at) {
      const Status status =
          read_snapshot(snapshot_path(options.run, *at), hash, state, weights, optimizer.state());
      if (status) return true;
      if (status.error().code() != ErrorCode::corrupt) return tl::unexpected(status.error());
      if (at + 1 == steps.rend())
        return fail(ErrorCode::corrupt,
                    fmt::format("{}; no older snapshot is left", status.error().message()));
      notice(fmt::format("{}; going back to the one before", status.error().message()));
    }
    return false;
  }

  // Leaves in the metrics what came before the present step.
  Status open_metrics() {
    if (!first_rank()) return {};
    HADAL_ASSIGN_OR_RETURN(metrics, MetricsFile::open(options.run / "metrics.jsonl", state.step));
    return {};
  }

  bool is_spike(double loss) const {
    if (recipe.spike.rise == 0 || static_cast<std::int64_t>(state.recent_losses.size()) < recipe.spike.window)
      return false;
    const double mean = std::accumulate(state.recent_losses.begin(), state.recent_losses.end(), 0.0) /
                        static_cast<double>(state.recent_losses.size());
    return loss > mean + recipe.spike.rise;
  }
  // Back to the last snapshot, from where routing is anticipated until some time after this step; the
  // snapshot is written again with that knowledge, so that a run killed now goes the same way. False: nothing
  // to go back to, or it would happen again.
  Result<bool> roll_back(std::int64_t step) {
    if (recipe.anticipatory_routing.mode != Anticipation::after_spike || state.last_spike == step ||
        state.rollbacks >= recipe.spike.rollbacks)
      return false;
    const std::int64_t rollbacks = state.rollbacks + 1;
    HADAL_ASSIGN_OR_RETURN(const bool found, restore());
    if (!found) return false;
    state.rollbacks = rollbacks;
    state.last_spike = step;
    state.anticipate_until = step + recipe.anticipatory_routing.steps;
    state.routing.clear();
    HADAL_RETURN_IF_ERROR(snapshot());
    HADAL_RETURN_IF_ERROR(open_metrics());
    notice(fmt::format("step {}: loss spike; back to step {}, routing anticipated until step {}", step,
                       state.step, state.anticipate_until));
    return true;
  }

  // Each rank looks at what it has; the first one that finds something is believed.
  Status check_finite(const StepPlan& plan, const Gradient& gradient, double norm) {
    const std::string own = what_is_not_finite(gradient, norm);
    for (const std::vector<char>& theirs : ranks().gather(std::span<const char>(own))) {
      if (theirs.empty()) continue;
      return fail(
          ErrorCode::internal,
          fmt::format("step {}: {} (sequences {} to {} of stage {}); {}; try a lower learning_rate.peak or "
                      "optimizer.clip_norm",
                      plan.step, std::string_view(theirs.data(), theirs.size()), plan.first_sequence,
                      plan.first_sequence + plan.sequences - 1, plan.stage, last_snapshot()));
    }
    return {};
  }
  std::string what_is_not_finite(const Gradient& gradient, double norm) {
    if (const char* name = not_finite(gradient.losses)) {
      if (const Parameter* p = first_not_finite(weights, pool))
        return fmt::format("the weight {} is not finite", p->info.name);
      return fmt::format("the {} is not finite", name);
    }
    if (std::isfinite(norm)) return {};
    if (const Parameter* p = first_not_finite(gradients, pool))
      return fmt::format("the gradient of {} is not finite", p->info.name);
    // Finite numbers whose squares are not, or another rank's affair.
    return ranks().size() == 1 ? "the norm of the gradient is not finite" : "";
  }

  // One step. True: done; false: rolled back.
  Result<bool> step() {
    const Clock::time_point start = Clock::now();
    StepMetrics m;
    m.plan = plan_step(recipe, state.step);
    HADAL_RETURN_IF_ERROR(prepare_objective(m.plan));
    queue_routing(m.plan);
    m.anticipated = !state.routing.empty() && !state.routing.front().empty();
    Gradient gradient = forward_backward(m.plan);
    if (options.tamper) options.tamper(m.plan.step, gradient.losses, gradients);
    m.model_seconds = seconds_since(start);
    const Clock::time_point update = Clock::now();
    m.gradient_norm = norm_of_gradient();
    if (!std::isfinite(m.gradient_norm) || not_finite(gradient.losses) != nullptr)
      HADAL_RETURN_IF_ERROR(check_finite(m.plan, gradient, m.gradient_norm));
    m.losses = gradient.losses;
    m.mixing = gradient.mixing;
    m.spike = is_spike(m.losses.ce);
    if (m.spike) {
      HADAL_ASSIGN_OR_RETURN(const bool back, roll_back(m.plan.step));
      if (back) return false;
      notice(fmt::format("step {}: loss spike, {:.3f}", m.plan.step, m.losses.ce));
    }
    const Trained trained = m.plan.attention == StageAttention::dense     ? Trained::all_but_indexer
                            : m.plan.attention == StageAttention::indexer ? Trained::indexer
                                                                          : Trained::all;
    optimizer.step(weights, gradients, trained, m.plan.learning_rate, m.gradient_norm, mine);
    ranks().share(segments, weights.values().data());
    if (trained != Trained::indexer) balance_experts(gradient.load);
    describe_load(gradient.load, m);
    m.optimizer_seconds = seconds_since(update);
    if (!state.routing.empty()) state.routing.pop_front();
    state.recent_losses.push_back(m.losses.ce);
    while (static_cast<std::int64_t>(state.recent_losses.size()) > recipe.spike.window)
      state.recent_losses.pop_front();
    ++state.step;
    m.seconds = seconds_since(start);
    const bool last = state.step == recipe.steps;
    if (validation && (last || (recipe.evaluation.every > 0 && state.step % recipe.evaluation.every == 0))) {
      HADAL_ASSIGN_OR_RETURN(m.validation, evaluate());
      if (state.best_validation == 0 || m.validation->ce < state.best_validation)
        state.best_validation = m.validation->ce;
    }
    Status written;
    if (metrics) written = metrics->write(to_json(m));
    if (!written)
      written =
          fail(written.error().code(), fmt::format("{}; {}", written.error().message(), last_snapshot()));
    HADAL_RETURN_IF_ERROR(agree(ranks(), written));
    if (last || state.step % recipe.snapshot.every == 0) HADAL_RETURN_IF_ERROR(snapshot());
    if (options.on_step) options.on_step(m);
    return true;
  }
};

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Trainer::Trainer(Trainer&&) noexcept = default;
Trainer& Trainer::operator=(Trainer&&) noexcept = default;
Trainer::~Trainer() = default;
std::int64_t Trainer::step() const {
  return impl_->state.step;
}
const ParameterSet& Trainer::weights() const {
  return impl_->weights;
}
const TrainingRecipe& Trainer::recipe() const {
  return impl_->recipe;
}
Result<Losses> Trainer::evaluate() {
  return impl_->evaluate();
}

std::int64_t Trainer::memory() const {
  const auto floats = [](const ParameterSet& set) { return static_cast<std::int64_t>(set.values().size()); };
  const Optimizer::State& moments = impl_->optimizer.state();
  return 4 * (floats(impl_->weights) + floats(impl_->gradients) + floats(moments.first) +
              static_cast<std::int64_t>(moments.second.size())) +
         (impl_->objective ? impl_->objective->memory() : 0);
}

namespace {

// What several ranks cannot do.
Status check_ranks(const TrainingRecipe& recipe, int ranks) {
  if (ranks == 1) return {};
  if (recipe.anticipatory_routing.mode != Anticipation::off)
    return fail(ErrorCode::unsupported,
                fmt::format("anticipatory_routing.mode is not \"off\", which {} processes cannot do; use one",
                            ranks));
  for (const RecipeStage& stage : recipe.stages) {
    for (const BatchRamp& batch : recipe.batch) {
      if (batch.tokens >= ranks * stage.length) continue;
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{} processes, but a batch of {} tokens has fewer sequences of {}; use fewer "
                              "processes or a larger batch",
                              ranks, batch.tokens, stage.length));
    }
  }
  return {};
}

}  // namespace

Result<Trainer> Trainer::create(TrainingRecipe recipe, TrainerOptions options, ThreadPool& pool) {
  Communicator* const ranks = options.communicator;
  const bool first_rank = ranks == nullptr || ranks->rank() == 0;
  HADAL_RETURN_IF_ERROR(check_ranks(recipe, ranks == nullptr ? 1 : ranks->size()));
  const std::string text = recipe.to_json();
  Result<bool> there = first_rank ? find_run(options.run, text, options.resume) : Result<bool>(false);
  if (!there) return tl::unexpected(std::move(there).error());
  HADAL_ASSIGN_OR_RETURN(TrainingData data, TrainingData::open(recipe.data, recipe.seed));
  std::optional<TrainingData> validation;
  if (!recipe.validation.empty()) {
    const DataSource source{recipe.validation, 1};
    HADAL_ASSIGN_OR_RETURN(validation, TrainingData::open(std::span(&source, 1), recipe.seed));
  }
  for (const TrainingData* tokens :
       std::initializer_list<const TrainingData*>{&data, validation ? &*validation : nullptr}) {
    if (tokens == nullptr) continue;
    if (tokens->vocab_size() > recipe.config.vocab_size) {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("the data has tokens up to {}, but the model's vocab_size is {}",
                              tokens->vocab_size() - 1, recipe.config.vocab_size));
    }
    for (const RecipeStage& stage : recipe.stages)
      HADAL_RETURN_IF_ERROR(tokens->check_length(stage.length + recipe.tokens_ahead()));
  }
  std::optional<ParameterSet> weights;
  if (recipe.checkpoint.empty()) {
    weights = initial_weights(recipe, pool);
  } else {
    HADAL_ASSIGN_OR_RETURN(const Model model, Model::load(recipe.checkpoint, options.notice));
    weights = ParameterSet::from(model, pool);
  }
  std::optional<RunLock> lock;
  if (first_rank) {
    HADAL_ASSIGN_OR_RETURN(lock, open_run(text, options.run, *there));
  }
  const Config config = recipe.config;
  ParameterSet gradients(config);
  Optimizer optimizer(config, optimizer_options(recipe), pool);
  auto impl = std::unique_ptr<Impl>(new Impl{std::move(recipe),
                                             std::move(options),
                                             pool,
                                             std::move(lock),
                                             std::move(data),
                                             std::move(validation),
                                             std::move(*weights),
                                             std::move(gradients),
                                             std::move(optimizer),
                                             {},
                                             config_hash(config),
                                             {},
                                             0,
                                             {}});
  HADAL_ASSIGN_OR_RETURN(const bool found, impl->restore());
  if (*there && !found) impl->notice("no snapshot yet: the run starts again");
  impl->deal_out_parameters();
  HADAL_RETURN_IF_ERROR(impl->open_metrics());
  const StepPlan plan = plan_step(impl->recipe, std::min(impl->state.step, impl->recipe.steps - 1));
  HADAL_RETURN_IF_ERROR(impl->prepare_objective(plan));
  return Trainer(std::move(impl));
}

Status Trainer::run() {
  Impl& t = *impl_;
  // Something to go back to from the very first spike.
  if (t.state.step == 0 && t.recipe.anticipatory_routing.mode == Anticipation::after_spike)
    HADAL_RETURN_IF_ERROR(t.snapshot());
  while (t.state.step < t.recipe.steps) {
    HADAL_RETURN_IF_ERROR(t.step());
    const double wanted = t.options.stop && t.options.stop() ? 1 : 0;
    if (t.summed({wanted})[0] > 0 && t.state.step < t.recipe.steps) {
      HADAL_RETURN_IF_ERROR(t.snapshot());
      return {};
    }
  }
  return {};
}

Result<TrainedWeights> load_run(const fs::path& run, std::int64_t step) {
  HADAL_ASSIGN_OR_RETURN(TrainingRecipe recipe, load_recipe(run / "recipe.json"));
  const auto steps = list_snapshots(run);
  if (steps.empty() || (step >= 0 && std::find(steps.begin(), steps.end(), step) == steps.end())) {
    return fail(ErrorCode::not_found, fmt::format("{}: {}; there are: {}", run.string(),
                                                  step >= 0 ? fmt::format("no snapshot of step {}", step)
                                                            : std::string("no snapshot yet"),
                                                  fmt::join(steps, ", ")));
  }
  if (step < 0) step = steps.back();
  ParameterSet weights(recipe.config);
  HADAL_RETURN_IF_ERROR(read_snapshot_weights(snapshot_path(run, step), config_hash(recipe.config), weights));
  return TrainedWeights{std::move(recipe), std::move(weights), step};
}

}  // namespace hadal
