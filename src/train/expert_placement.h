// Which rank has which routed experts, whole matrices and the same ones in every block: expert e of E is at
// rank e * ranks / E (rounded down), so a rank's experts are consecutive, and rows sorted by expert are
// sorted by rank.
#pragma once

#include <cstdint>

#include "model/parameters.h"

namespace hadal {

struct ExpertPlacement {
  int rank = 0;   // this one
  int ranks = 1;  // 1: everything is here
  std::int64_t experts = 0;

  // Of a set that has everything but routed experts.
  static ExpertPlacement nowhere(std::int64_t experts) { return {-1, 2, experts}; }

  bool spread() const { return ranks > 1; }
  bool spreads(const ParameterInfo& info) const { return spread() && info.role == Role::expert; }
  int owner(std::int64_t expert) const { return static_cast<int>(expert * ranks / experts); }
  // The experts of a rank are [first(rank), first(rank + 1)).
  std::int64_t first(std::int64_t of_rank) const { return (of_rank * experts + ranks - 1) / ranks; }
  // Whether this rank has it.
  bool holds(const ParameterInfo& info) const { return !spreads(info) || owner(info.expert) == rank; }
};

}  // namespace hadal
