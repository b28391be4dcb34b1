#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "train/batch_runner.h"
#include "train/initial_weights.h"
#include "train/optimizer.h"
#include "train/ownership.h"
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
  ParameterSet weights, gradients;
  Optimizer optimizer;
  std::uint64_t hash;
  std::optional<RunLock> lock = {};  // of the first rank
  std::optional<BatchRunner> batches = {};
  TrainerState state = {};
  std::optional<MetricsFile> metrics = {};  // of the first rank
  Ownership owned = {};
  Alone alone = {};

  Communicator& ranks() { return options.communicator != nullptr ? *options.communicator : alone; }
  bool first_rank() { return ranks().rank() == 0; }

  void notice(const std::string& text) const {
    if (options.notice) options.notice(text);
  }
  std::string last_snapshot() const {
    const auto steps = list_snapshots(options.run);
    return steps.empty() ? "there is no snapshot yet"
                         : fmt::format("the snapshot of step {} is kept", steps.back());
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
    while (static_cast<std::int64_t>(state.routing.size()) <= delay) {
      const std::int64_t ahead = plan.step + static_cast<std::int64_t>(state.routing.size());
      // The router's own choice for a step of another stage.
      const bool same = ahead < recipe.steps && plan_step(recipe, ahead).stage == plan.stage;
      state.routing.push_back(same ? batches->route(plan_step(recipe, ahead), weights)
                                   : std::vector<std::int32_t>());
    }
  }

  double norm_of_gradient() {
    const std::vector<double> squares = sum_over_ranks(ranks(), gradient_squares(gradients, pool));
    return std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
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
    if (!batches->has_validation())
      return fail(ErrorCode::invalid_argument, "data.validation names nothing to evaluate on");
    const StepPlan plan = plan_step(recipe, std::min(state.step, recipe.steps - 1));
    HADAL_RETURN_IF_ERROR(batches->prepare(plan));
    return batches->evaluate(plan, weights);
  }

  // An update may leave what no later loss shows: the row of a token that the data does not have.
  Status check_weights() {
    const Parameter* p = first_not_finite(weights, pool);
    if (p == nullptr) return {};
    return fail(ErrorCode::internal,
                fmt::format("before step {}: the weight {} is not finite, so no snapshot is "
                            "taken; {}",
                            state.step, p->info.name, last_snapshot()));
  }
  Status snapshot() {
    HADAL_RETURN_IF_ERROR(agree(ranks(), check_weights()));
    const Status written =
        write_snapshot(options.run, hash, state, weights, optimizer.state(), owned, ranks());
    if (written && first_rank()) prune_snapshots(options.run, recipe.snapshot.keep);
    return agree(ranks(), written);
  }

  // The latest snapshot that is sound; false: there is none at all.
  Result<bool> restore() {
    auto steps = list_snapshots(options.run);
    for (auto at = steps.rbegin(); at != steps.rend(); ++at) {
      const Status status = read_snapshot(snapshot_path(options.run, *at), hash, state, weights,
                                          optimizer.state(), owned, ranks().rank());
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
  Status check_finite(const StepPlan& plan, const StepGradient& gradient, double norm) {
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
  std::string what_is_not_finite(const StepGradient& gradient, double norm) {
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
    HADAL_RETURN_IF_ERROR(batches->prepare(m.plan));
    queue_routing(m.plan);
    std::span<const std::int32_t> routing;
    if (!state.routing.empty()) routing = state.routing.front();
    m.anticipated = !routing.empty();
    StepGradient gradient = batches->forward_backward(m.plan, weights, routing, owned.replicated, gradients);
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
    optimizer.step(weights, gradients, trained, m.plan.learning_rate, m.gradient_norm, owned.mine);
    ranks().share(owned.replicated, weights.values().data());
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
    if (batches->has_validation() &&
        (last || (recipe.evaluation.every > 0 && state.step % recipe.evaluation.every == 0))) {
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
  return 4 * (impl_->weights.held() + impl_->gradients.held() + impl_->owned.moments) +
         impl_->batches->memory();
}

Result<Trainer> Trainer::create(TrainingRecipe recipe, TrainerOptions options, ThreadPool& pool) {
  const std::string text = recipe.to_json();
  const bool first_rank = options.communicator == nullptr || options.communicator->rank() == 0;
  bool there = false;
  if (first_rank) {
    HADAL_ASSIGN_OR_RETURN(there, find_run(options.run, text, options.resume));
  }
  ExpertPlacement placement;
  if (recipe.expert_parallel && options.communicator != nullptr) {
    placement = {options.communicator->rank(), options.communicator->size(), recipe.config.n_routed_experts};
  }
  std::optional<ParameterSet> weights;
  if (recipe.checkpoint.empty()) {
    weights = initial_weights(recipe, pool, placement);
  } else {
    HADAL_ASSIGN_OR_RETURN(const Model model, Model::load(recipe.checkpoint, options.notice));
    weights = ParameterSet::from(model, pool, placement);
  }
  const Config config = recipe.config;
  Optimizer optimizer(config, optimizer_options(recipe), pool);
  auto impl = std::unique_ptr<Impl>(new Impl{std::move(recipe), std::move(options), pool, std::move(*weights),
                                             ParameterSet(config, placement), std::move(optimizer),
                                             config_hash(config)});
  HADAL_ASSIGN_OR_RETURN(impl->batches, BatchRunner::create(impl->recipe, impl->ranks(), pool));
  if (first_rank) {
    HADAL_ASSIGN_OR_RETURN(impl->lock, open_run(text, impl->options.run, there));
  }
  impl->owned = Ownership::of(impl->weights, impl->optimizer, impl->ranks());
  HADAL_ASSIGN_OR_RETURN(const bool found, impl->restore());
  if (there && !found) impl->notice("no snapshot yet: the run starts again");
  HADAL_RETURN_IF_ERROR(impl->open_metrics());
  HADAL_RETURN_IF_ERROR(
      impl->batches->prepare(plan_step(impl->recipe, std::min(impl->state.step, impl->recipe.steps - 1))));
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
    if (sum_over_ranks(t.ranks(), {&wanted, 1})[0] > 0 && t.state.step < t.recipe.steps) {
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
    return fail(ErrorCode::not_found, steps.empty()
                                          ? fmt::format("{}: no snapshot yet", run.string())
                                          : fmt::format("{}: no snapshot of step {}; there are: {}",
                                                        run.string(), step, fmt::join(steps, ", ")));
  }
  if (step < 0) step = steps.back();
  ParameterSet weights(recipe.config);
  HADAL_RETURN_IF_ERROR(read_snapshot_weights(snapshot_path(run, step), config_hash(recipe.config), weights));
  return TrainedWeights{std::move(recipe), std::move(weights), step};
}

}  // namespace hadal
