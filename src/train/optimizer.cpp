#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "train/sum_of_squares.h"

namespace hadal {
namespace {

bool is_trained(const ParameterInfo& info, Trained trained) {
  return trained == Trained::all || is_indexer(info) == (trained == Trained::indexer);
}

UpdateRule rule_of(const ParameterInfo& info, bool muon) {
  const UpdateRule rule = update_rule(info.role);
  return rule == UpdateRule::muon && !muon ? UpdateRule::adamw : rule;
}

}  // namespace

UpdateRule update_rule(Role role) {
  switch (role) {
    case Role::embedding:
    case Role::head:
    case Role::norm:
    case Role::hc_base:
    case Role::hc_scale:
      return UpdateRule::adamw;
    case Role::position_bias:
    case Role::attention_sink:
      return UpdateRule::adamw_no_decay;
    case Role::router_bias:
    case Role::hash_table:
      return UpdateRule::none;
    case Role::attention_projection:
    case Role::mtp_projection:
    case Role::expert:
    case Role::shared_expert:
    case Role::compressor_projection:
    case Role::index_weights:
    case Role::router:
    case Role::hc_mixer:
      return UpdateRule::muon;
  }
  return UpdateRule::none;
}

Optimizer::Optimizer(const Config& config, const OptimizerOptions& options, ThreadPool& pool)
    : options_(options),
      o_groups_(config.o_groups),
      pool_(pool),
      muon_(options.muon_options, pool),
      state_{ParameterSet(config), {}, 0, 0} {
  std::int64_t size = 0;
  for (const Parameter& p : state_.first.parameters()) {
    const UpdateRule rule = rule_of(p.info, options.muon);
    const bool second = rule == UpdateRule::adamw || rule == UpdateRule::adamw_no_decay;
    second_offsets_.push_back(second ? size : -1);
    if (second) size += p.size;
  }
  state_.second = UntouchedFloats(static_cast<std::size_t>(size));
}

std::int64_t Optimizer::matrices_in(const ParameterInfo& info) const {
  return info.name.ends_with(".wo_a.weight") ? o_groups_ : 1;
}

double Optimizer::muon_flops(const Parameter& p) const {
  if (rule_of(p.info, options_.muon) != UpdateRule::muon) return 0;
  const std::int64_t parts = matrices_in(p.info);
  return static_cast<double>(parts) * newton_schulz_flops(p.info.shape[0] / parts, p.info.shape[1]);
}

double Optimizer::muon_flops() const {
  double flops = 0;
  for (const Parameter& p : state_.first.parameters()) flops += muon_flops(p);
  return flops;
}

std::vector<double> Optimizer::costs() const {
  constexpr double kElement = 20;  // whatever the rule
  std::vector<double> costs;
  for (const Parameter& p : state_.first.parameters())
    costs.push_back(muon_flops(p) + kElement * static_cast<double>(p.size));
  return costs;
}

void Optimizer::step(ParameterSet& weights, const ParameterSet& gradients, Trained trained,
                     double learning_rate, double gradient_norm, const std::vector<bool>& mine) {
  const double clip = options_.clip_norm;
  const auto scale = static_cast<float>(clip > 0 && gradient_norm > clip ? clip / gradient_norm : 1);
  const auto rate = static_cast<float>(learning_rate);
  std::vector<MuonMatrix> matrices;
  std::vector<AdamwVector> indexer, others;
  const auto parameters = weights.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    const UpdateRule rule = rule_of(p.info, options_.muon);
    if (rule == UpdateRule::none || !is_trained(p.info, trained) || (!mine.empty() && !mine[i])) continue;
    float* const weight = weights.values().data() + p.offset;
    float* const first = state_.first.values().data() + p.offset;
    const float* const gradient = gradients.values().data() + p.offset;
    if (rule == UpdateRule::muon) {
      const std::int64_t parts = matrices_in(p.info);
      const std::int64_t rows = p.info.shape[0] / parts, columns = p.info.shape[1];
      for (std::int64_t g = 0; g < parts; ++g) {
        const std::int64_t at = g * rows * columns;
        matrices.push_back({weight + at, first + at, gradient + at, rows, columns});
      }
    } else {
      AdamwVector vector{weight,   first,  state_.second.data() + second_offsets_[i],
                         gradient, p.size, rule == UpdateRule::adamw};
      (is_indexer(p.info) ? indexer : others).push_back(vector);
    }
  }
  if (trained != Trained::all_but_indexer) ++state_.indexer_steps;
  if (trained != Trained::indexer) ++state_.other_steps;
  muon_.step(matrices, rate, scale);
  adamw_step(indexer, options_.adamw, state_.indexer_steps, rate, scale, pool_);
  adamw_step(others, options_.adamw, state_.other_steps, rate, scale, pool_);
}

std::vector<double> gradient_squares(const ParameterSet& gradients, ThreadPool& pool) {
  const auto parameters = gradients.parameters();
  std::vector<double> squares(parameters.size());
  pool.parallel_for(static_cast<std::int64_t>(squares.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      squares[i] = sum_of_squares(gradients[parameters[i]]);
  });
  return squares;
}

const Parameter* first_not_finite(const ParameterSet& set, ThreadPool& pool) {
  const auto parameters = set.parameters();
  std::vector<std::uint8_t> bad(parameters.size());
  pool.parallel_for(
      static_cast<std::int64_t>(parameters.size()), 1, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
          const auto values = set[parameters[i]];
          bad[i] =
              std::any_of(values.begin(), values.end(), [](float x) { return !std::isfinite(x); }) ? 1 : 0;
        }
      });
  const auto found = std::find(bad.begin(), bad.end(), std::uint8_t{1});
  return found == bad.end() ? nullptr : &parameters[static_cast<std::size_t>(found - bad.begin())];
}

}  // namespace hadal
