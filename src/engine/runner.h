// What the scheduler runs: one ragged forward over sequences whose states it owns.
//
// The production runner is a model. Another one serves the protocol tests: it has no weights and writes what
// a script says, so that everything above the forward can be tested on chosen tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include <hadal/engine.h>

#include "model/sequence_state.h"

namespace hadal {

// Consecutive tokens of one sequence within a step.
struct RunItem {
  SequenceState* state = nullptr;         // each at most once in a step
  std::span<const std::int32_t> history;  // every token of the sequence up to the last one to be read now
  std::int64_t count = 0;                 // how many of them, the last, are to be read; at least one
  bool wants_logits = false;              // of the token after the last
};

class Runner {
 public:
  Runner() = default;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  virtual ~Runner() = default;

  virtual const StateLayout& layout() const = 0;
  virtual std::int64_t vocab_size() const = 0;
  virtual std::int64_t context() const = 0;  // most tokens of a sequence
  // Of everything that the rows of a state depend on: weights, shapes, numerics. Guards states on disk.
  virtual std::uint64_t fingerprint() const = 0;
  // Reads the tokens; the logits asked for, [rows, vocab], in the order of the items, valid until the next
  // call. Errors leave every state as it was.
  virtual Result<std::span<const float>> forward(std::span<const RunItem> items) = 0;
};

// Runs the model of an engine, which must outlive it and do nothing else meanwhile.
std::unique_ptr<Runner> make_model_runner(const Engine& engine);

}  // namespace hadal
