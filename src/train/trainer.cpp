#include "train/trainer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "train/data.h"
#include "train/initial_weights.h"
#include "train/optimizer.h"
#include "train/snapshot.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One trainer per run directory; the lock goes with the process.
class RunLock {
 public:
  static Result<RunLock> take(const fs::path& run) {
    const std::string path = (run / "lock").string();
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return fail(ErrorCode::io, fmt::format("{}: cannot create", path));
    RunLock lock(fd);
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0)
      return fail(ErrorCode::invalid_argument, fmt::format("{}: another process trains here", run.string()));
    return lock;
  }
  RunLock(RunLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  RunLock& operator=(RunLock&&) = delete;
  ~RunLock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  explicit RunLock(int fd) : fd_(fd) {}
  int fd_;
};

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

std::string to_json(const StepMetrics& m) {
  Json json = {{"step", m.plan.step},
               {"tokens", m.plan.tokens_before + m.plan.tokens()},
               {"stage", m.plan.stage},
               {"attention", to_string(m.plan.attention)},
               {"length", m.plan.length},
               {"sequences", m.plan.sequences},
               {"learning_rate", m.plan.learning_rate},
               {"loss", m.losses.total},
               {"ce", m.losses.ce},
               {"mtp", m.losses.mtp},
               {"balance", m.losses.balance},
               {"index_kl", m.losses.index_kl},
               {"gradient_norm", m.gradient_norm},
               {"load_max", m.load_max},
               {"load_min", m.load_min},
               {"mixing_rows", {m.mixing.least_row, m.mixing.most_row}},
               {"mixing_columns", {m.mixing.least_column, m.mixing.most_column}},
               {"tokens_per_s", static_cast<double>(m.plan.tokens()) / std::max(m.seconds, 1e-9)},
               {"model_s", m.model_seconds},
               {"optimizer_s", m.optimizer_seconds}};
  if (m.anticipated) json["anticipated"] = true;
  if (m.spike) json["spike"] = true;
  if (m.validation) json["validation"] = {{"ce", m.validation->ce}, {"mtp", m.validation->mtp}};
  return json.dump();
}

struct Trainer::Impl {
  TrainingRecipe recipe;
  TrainerOptions options;
  ThreadPool& pool;
  RunLock lock;
  TrainingData data;
  std::optional<TrainingData> validation;
  ParameterSet weights, gradients;
  Optimizer optimizer;
  TrainerState state;
  std::uint64_t hash;
  std::optional<Objective> objective;
  std::size_t objective_stage = 0;
  std::ofstream metrics;

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
    std::vector<Batch> batches;
    std::int64_t counted = 0, counted_mtp = 0;
    for (std::int64_t first = 0; first < plan.sequences; first += plan.micro_batch) {
      batches.push_back(training_batch(plan, first, std::min(plan.micro_batch, plan.sequences - first)));
      counted += batches.back().counted;
      counted_mtp += batches.back().counted_mtp;
    }
    std::span<const std::int32_t> routing;
    if (!state.routing.empty()) routing = state.routing.front();
    std::int64_t first = 0;
    for (const Batch& batch : batches) {
      const std::int64_t n = std::min(plan.micro_batch, plan.sequences - first);
      first += n;
      TrainingBatch part = view(batch, n, plan.length);
      if (!routing.empty()) {
        const auto size = static_cast<std::size_t>(recipe.config.num_blocks() * part.n_tokens() *
                                                   recipe.config.num_experts_per_tok);
        part.routing = routing.first(size);
        routing = routing.subspan(size);
      }
      // The step's loss is a mean over all its tokens that count: a part weighs by how many it has.
      const auto share = [&](std::int64_t of_part, std::int64_t of_all) {
        return of_all > 0 ? static_cast<double>(of_part) / static_cast<double>(of_all) : 0.0;
      };
      const double weight = share(batch.counted, counted);
      const Losses losses = objective->forward_backward(weights, part, static_cast<float>(weight), gradients);
      add_share(result.losses, losses, weight, share(batch.counted_mtp, counted_mtp));
      const auto load = objective->expert_load();
      for (std::size_t i = 0; i < load.size(); ++i) result.load[i] += load[i];
      const MixingSums& sums = objective->mixing_sums();
      result.mixing = {std::min(result.mixing.least_row, sums.least_row),
                       std::max(result.mixing.most_row, sums.most_row),
                       std::min(result.mixing.least_column, sums.least_column),
                       std::max(result.mixing.most_column, sums.most_column)};
    }
    return result;
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
    Losses sum;
    double ce = 0, mtp = 0, balance = 0, index_kl = 0;
    for (std::int64_t first = 0; first < windows; first += plan.micro_batch) {
      const std::int64_t n = std::min(plan.micro_batch, windows - first);
      const Batch batch =
          read_batch(n, plan.length, validation->masked(), [&](std::int64_t i, auto tokens, auto counts) {
            validation->held_out(first + i, windows, plan.length, tokens, counts);
          });
      const Losses part = objective->evaluate(weights, view(batch, n, plan.length));
      sum.n_tokens += part.n_tokens;
      sum.n_mtp_tokens += part.n_mtp_tokens;
      ce += part.ce * static_cast<double>(part.n_tokens);
      mtp += part.mtp * static_cast<double>(part.n_mtp_tokens);
      balance += part.balance * static_cast<double>(n);
      index_kl += part.index_kl * static_cast<double>(n);
    }
    sum.ce = ce / static_cast<double>(std::max<std::int64_t>(sum.n_tokens, 1));
    sum.mtp = mtp / static_cast<double>(std::max<std::int64_t>(sum.n_mtp_tokens, 1));
    sum.balance = balance / static_cast<double>(windows);
    sum.index_kl = index_kl / static_cast<double>(windows);
    sum.total = sum.ce + plan.mtp_weight * sum.mtp;
    return sum;
  }

  Status snapshot() {
    HADAL_RETURN_IF_ERROR(write_snapshot(options.run, hash, state, weights, optimizer.state()));
    prune_snapshots(options.run, recipe.snapshot.keep);
    return {};
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

  // Leaves in metrics.jsonl what came before the present step, and opens it for more.
  Status open_metrics() {
    const fs::path path = options.run / "metrics.jsonl";
    metrics.close();
    std::string kept;
    std::ifstream old(path);
    for (std::string line; std::getline(old, line);) {
      const Json json = Json::parse(line, nullptr, false);
      if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
          json["step"].get<std::int64_t>() < state.step)
        kept += line + "\n";
    }
    old.close();
    HADAL_RETURN_IF_ERROR(write_file(path, kept));
    metrics.clear();
    metrics.open(path, std::ios::app);
    if (!metrics) return fail(ErrorCode::io, fmt::format("{}: cannot open for writing", path.string()));
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

  Status check_finite(const StepPlan& plan, const Gradient& gradient, double norm) {
    const auto stop = [&](const std::string& what) {
      return fail(
          ErrorCode::internal,
          fmt::format("step {}: {} (sequences {} to {} of stage {}); {}; try a lower learning_rate.peak or "
                      "optimizer.clip_norm",
                      plan.step, what, plan.first_sequence, plan.first_sequence + plan.sequences - 1,
                      plan.stage, last_snapshot()));
    };
    if (const Parameter* p = first_not_finite(weights, pool);
        p != nullptr && !std::isfinite(gradient.losses.total))
      return stop(fmt::format("the weight {} is not finite", p->info.name));
    if (const char* name = not_finite(gradient.losses))
      return stop(fmt::format("the {} is not finite", name));
    if (std::isfinite(norm)) return {};
    const Parameter* p = first_not_finite(gradients, pool);
    return stop(p != nullptr ? fmt::format("the gradient of {} is not finite", p->info.name)
                             : std::string("the norm of the gradient is not finite"));
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
    m.gradient_norm = gradient_norm(gradients, pool);
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
    optimizer.step(weights, gradients, trained, m.plan.learning_rate, m.gradient_norm);
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
    metrics << to_json(m) << std::endl;  // a line is there once it is a line
    if (!metrics)
      return fail(ErrorCode::io, fmt::format("{}: cannot write; {}", (options.run / "metrics.jsonl").string(),
                                             last_snapshot()));
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

Result<Trainer> Trainer::create(TrainingRecipe recipe, TrainerOptions options, ThreadPool& pool) {
  const fs::path recipe_file = options.run / "recipe.json";
  const std::string text = recipe.to_json();
  std::error_code error;
  const bool there = fs::exists(recipe_file, error);
  if (there && !options.resume) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: a run is there already; --resume continues it, --run DIR starts another",
                            options.run.string()));
  }
  if (there) {
    HADAL_ASSIGN_OR_RETURN(const std::string old, read_file(recipe_file, std::size_t{1} << 20));
    if (old != text) {
      const Json changes = Json::diff(Json::parse(old, nullptr, false), Json::parse(text));
      const std::string where = changes.empty() ? std::string("/") : changes[0].value("path", "/");
      return fail(
          ErrorCode::invalid_argument,
          fmt::format("{}: the run was started with another recipe: {} differs; --run DIR starts another",
                      recipe_file.string(), where));
    }
  }
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
  fs::create_directories(options.run, error);
  if (error) {
    return fail(ErrorCode::io,
                fmt::format("{}: cannot create the directory: {}", options.run.string(), error.message()));
  }
  HADAL_ASSIGN_OR_RETURN(RunLock lock, RunLock::take(options.run));
  if (!there) HADAL_RETURN_IF_ERROR(write_file(recipe_file, text));
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
  if (there && !found) impl->notice("no snapshot yet: the run starts again");
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
    if (t.options.stop && t.options.stop() && t.state.step < t.recipe.steps) {
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
