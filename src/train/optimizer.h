// The optimizer of a whole model: which rule moves which parameter follows from its role in the walk over the
// parameters (training.md section 1), and from what the stage trains.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "train/adamw.h"
#include "train/muon.h"
#include "train/parameter_set.h"

namespace hadal {

enum class UpdateRule : std::uint8_t {
  muon,            // every matrix but embedding and head
  adamw,           // embedding, head, RMSNorm weights, mHC bases and scales
  adamw_no_decay,  // position biases, attention sinks
  none,            // the router's bias (aux-loss-free balancing moves it), hash tables
};
UpdateRule update_rule(Role role);

// What a stage trains.
enum class Trained : std::uint8_t { all_but_indexer, indexer, all };

struct OptimizerOptions {
  bool muon = true;  // else AdamW for matrices too
  MuonOptions muon_options;
  AdamwOptions adamw;
  double clip_norm = 1;  // of the whole gradient; 0: none
};

class Optimizer {
 public:
  // The pool must outlive it.
  Optimizer(const Config& config, const OptimizerOptions& options, ThreadPool& pool);

  // One step of the parameters that are this rank's (`mine`, by parameter; empty: all), after which it counts
  // as one more for all that was trained (AdamW's bias correction).
  void step(ParameterSet& weights, const ParameterSet& gradients, Trained trained, double learning_rate,
            double gradient_norm, const std::vector<bool>& mine = {});

  // What a snapshot keeps. Of several ranks each has the moments of what it updates (ownership.h); the
  // others' are never touched and take no memory.
  struct State {
    ParameterSet first;      // Muon's momentum, AdamW's first moment
    UntouchedFloats second;  // AdamW's second moments, parameter after parameter
    std::int64_t indexer_steps = 0, other_steps = 0;
  };
  State& state() { return state_; }
  const State& state() const { return state_; }
  double muon_flops() const;  // of Newton-Schulz in one step of everything
  // Of one step of each parameter, in floating-point operations, about: what ranks deal out.
  std::vector<double> costs() const;
  // Where the second moments of a parameter are in State::second; -1: it has none.
  std::int64_t second_offset(std::size_t parameter) const { return second_offsets_[parameter]; }

 private:
  // wo_a is one matrix per group of heads, each with inputs of its own; all others are what they are.
  std::int64_t matrices_in(const ParameterInfo& info) const;
  double muon_flops(const Parameter& parameter) const;  // 0: not Muon's

  OptimizerOptions options_;
  std::int64_t o_groups_;
  ThreadPool& pool_;
  Muon muon_;
  State state_;
  std::vector<std::int64_t> second_offsets_;  // by parameter; -1: none
};

// The sum of the squares of each parameter's gradient, in double and in a fixed order.
std::vector<double> gradient_squares(const ParameterSet& gradients, ThreadPool& pool);
// The first parameter with a value that is not finite; null: none.
const Parameter* first_not_finite(const ParameterSet& set, ThreadPool& pool);

}  // namespace hadal
