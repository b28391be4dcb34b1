#include "train/ownership.h"

namespace hadal {

Ownership Ownership::of(const ParameterSet& weights, const Optimizer& optimizer, const Communicator& ranks) {
  Ownership owned;
  const Optimizer::State& moments = optimizer.state();
  if (ranks.size() == 1) {
    owned.moments = static_cast<std::int64_t>(moments.first.values().size() + moments.second.size());
    return owned;
  }
  const auto parameters = weights.parameters();
  const ExpertPlacement& placement = weights.placement();
  const std::vector<double> costs = optimizer.costs();
  std::vector<int> owners(parameters.size());
  std::vector<double> load(static_cast<std::size_t>(ranks.size())), movable;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (placement.spreads(parameters[i].info)) {
      owners[i] = placement.owner(parameters[i].info.expert);
      load[static_cast<std::size_t>(owners[i])] += costs[i];
    } else {
      movable.push_back(costs[i]);
    }
  }
  const std::vector<int> dealt = deal_out(movable, ranks.size(), std::move(load));
  auto next = dealt.begin();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    const bool spread = placement.spreads(p.info);
    if (!spread) owners[i] = *next++;
    const bool mine = owners[i] == ranks.rank();
    const Shard shard{p.offset, p.size, owners[i]};
    owned.mine.push_back(mine);
    owned.parameters.push_back(shard);
    (spread ? owned.spread : owned.replicated).push_back(shard);
    if (mine) owned.moments += p.size;
    if (const std::int64_t at = optimizer.second_offset(i); at >= 0) {
      owned.second.push_back({at, p.size, owners[i]});
      if (mine) owned.moments += p.size;
    }
  }
  return owned;
}

}  // namespace hadal
