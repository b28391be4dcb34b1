// What a process with a memory budget spends it on, decided and printed before it is taken (docs/memory.md).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <hadal/error.h>

#include "model/config.h"
#include "model/sequence_state.h"
#include "ops/linear.h"

namespace hadal {

// What will be run, as far as memory depends on it.
struct MemoryBudget {
  std::int64_t bytes = 0;           // of the whole process; 0: no budget, all weights mapped
  std::int64_t chunk_tokens = 512;  // most tokens of one forward
  std::int64_t logit_rows = 1;      // most logits of one forward
  std::int64_t sequences = 1;       // at a time
  std::int64_t sequence_tokens =
      0;                         // read by all of these together; 0: kDefaultSequenceTokens or the context
  std::int64_t most_slots = 0;   // experts in memory at a time; 0: as many as fit
  std::int64_t other_bytes = 0;  // that the caller takes besides
  // Bytes that the numerics keep beside a weight which is in memory (Backend::prepared_bytes); empty: none.
  std::function<std::int64_t(const Linear&)> beside_weight = {};
};
inline constexpr std::int64_t kDefaultSequenceTokens = 16384;

struct MemoryPlan {
  std::int64_t budget = 0;
  std::int64_t process =
      0;  // resident when the plan is made: the program, its libraries, tokenizer, small tensors
  std::int64_t dense = 0;            // every weight but the routed experts
  std::int64_t prepared = 0;         // beside these, for the numerics
  std::int64_t scratch = 0;          // intermediates of the largest forward
  std::int64_t state = 0;            // of the sequences
  std::int64_t sequence_tokens = 0;  // that these may hold together
  std::int64_t other = 0;
  std::int64_t slots = 0;    // experts in memory at a time
  std::int64_t experts = 0;  // in the model
  std::int64_t slot_bytes = 0;

  // "12.0 GB = 0.1 process + 3.1 dense + 0.6 scratch and state + 8.2 for 612 of 2,816 experts", and behind
  // dense what is prepared, if anything is
  std::string to_string() const;
};

// An upper bound of what the intermediates of a forward take, from the shapes.
std::int64_t scratch_bytes(const Config& config, const MemoryBudget& budget);

// Fills in what is left: the slots. Errors: resource_exhausted, saying the least that works.
Result<MemoryPlan> plan_memory(const Config& config, const StateLayout& layout, const MemoryBudget& budget,
                               std::int64_t process, std::int64_t dense, std::int64_t prepared,
                               std::int64_t experts, std::int64_t slot_bytes);

}  // namespace hadal
