// Who keeps what in a run of several processes. Every parameter has one owner, a whole matrix at a time: it
// alone updates it, and it alone has its moments. Weights are everywhere, but for routed experts that are
// spread (expert_placement.h), which their owner alone has.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/communicator.h"
#include "train/optimizer.h"
#include "train/parameter_set.h"

namespace hadal {

// One process owns everything, and all lists are empty.
struct Ownership {
  std::vector<bool> mine;  // by parameter: whether this rank updates it
  // As ranges of ParameterSet::values(), ascending.
  std::vector<Shard> parameters;  // all
  std::vector<Shard> replicated;  // those that every rank has a copy of
  std::vector<Shard> spread;      // those that only their owner has
  std::vector<Shard> second;      // all that have second moments, as ranges of Optimizer::State::second
  std::int64_t moments = 0;       // numbers of this rank's, of both kinds

  // Spread experts are where the placement of the weights has them. The others are dealt out by the cost of
  // their update, so that no rank has much more to do than another.
  static Ownership of(const ParameterSet& weights, const Optimizer& optimizer, const Communicator& ranks);
};

}  // namespace hadal
