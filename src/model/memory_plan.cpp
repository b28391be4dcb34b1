#include "model/memory_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "model/expert_cache.h"

namespace hadal {
namespace {

double gb(std::int64_t bytes) {
  return static_cast<double>(bytes) / 1e9;
}

// 2816 -> "2,816"
std::string grouped(std::int64_t n) {
  return n < 1000 ? std::to_string(n) : fmt::format("{},{:03}", grouped(n / 1000), n % 1000);
}

std::int64_t sequence_tokens(const Config& config, const MemoryBudget& budget) {
  return budget.sequence_tokens > 0 ? budget.sequence_tokens
                                    : std::min(kDefaultSequenceTokens, config.max_position_embeddings);
}

}  // namespace

std::string MemoryPlan::to_string() const {
  return fmt::format(
      "{:.1f} GB = {:.1f} process + {:.1f} dense{} + {:.1f} scratch and state + {:.1f} for {} of {} experts",
      gb(budget), gb(process + other), gb(dense),
      prepared > 0 ? fmt::format(" + {:.1f} of it again as int8", gb(prepared)) : "", gb(scratch + state),
      gb(slots * slot_bytes), grouped(slots), grouped(experts));
}

std::int64_t scratch_bytes(const Config& config, const MemoryBudget& budget) {
  const std::int64_t n = budget.chunk_tokens, d = config.hidden_size, hc = config.hc_mult;
  const std::int64_t heads = config.num_attention_heads * config.head_dim;
  const std::int64_t index_heads = config.index_n_heads * config.index_head_dim;
  const std::int64_t compressed = sequence_tokens(config, budget) / 4;  // of the densest compressor
  const std::int64_t slots = config.num_experts_per_tok + 1;            // experts of a token
  // Floats of one token in a forward, by where they arise; a packed copy of an input in BF16 is half of it.
  const std::int64_t streams = 2 * hc * d;
  const std::int64_t hyper = 2 * ((2 + 2 * hc) * hc + 3 * d);
  const std::int64_t attention = 3 * heads + config.q_lora_rank + 2 * config.o_groups * config.o_lora_rank +
                                 4 * config.head_dim + 8 * config.head_dim + 2 * d;
  const std::int64_t indexer = 2 * index_heads + 8 * config.index_head_dim +
                               std::max(compressed, config.index_topk) + config.index_topk;
  const std::int64_t rows = 2 * (config.sliding_window + std::max(config.index_topk, 4 * compressed / 128));
  const std::int64_t experts =
      2 * config.n_routed_experts + d + slots * (7 * config.moe_intermediate_size / 2 + 4);
  const std::int64_t logits = config.vocab_size + 2 * hc * d;  // of a row
  // Scratch is taken in blocks of 8 MB, an array never across two of them: at worst a block more per array
  // that is large, of which there are about ten.
  return 4 * (n * (streams + hyper + attention + indexer + rows + experts) + budget.logit_rows * logits) +
         10 * (std::int64_t{8} << 20);
}

Result<MemoryPlan> plan_memory(const Config& config, const StateLayout& layout, const MemoryBudget& budget,
                               std::int64_t process, std::int64_t dense, std::int64_t prepared,
                               std::int64_t experts, std::int64_t slot_bytes) {
  MemoryPlan plan;
  plan.budget = budget.bytes;
  plan.process = process;
  plan.dense = dense;
  plan.prepared = prepared;
  plan.scratch = scratch_bytes(config, budget);
  // Of each sequence its fixed part twice (a failed forward goes back to the copy) and one page begun.
  plan.sequence_tokens = sequence_tokens(config, budget);
  plan.state = layout.bytes(plan.sequence_tokens) + budget.sequences * (layout.bytes(1) + layout.bytes(0));
  plan.other = budget.other_bytes;
  plan.experts = experts;
  plan.slot_bytes = slot_bytes;
  const std::int64_t fixed =
      plan.process + plan.other + plan.dense + plan.prepared + plan.scratch + plan.state;
  const std::int64_t least = ExpertCache::least_slots(config.num_experts_per_tok);
  plan.slots =
      std::min(std::max(experts, least), std::max<std::int64_t>(0, budget.bytes - fixed) / slot_bytes);
  if (budget.most_slots > 0) plan.slots = std::min(plan.slots, std::max(budget.most_slots, least));
  if (plan.slots < least) {
    return fail(
        ErrorCode::resource_exhausted,
        fmt::format(
            "a memory budget of {:.2f} GB is too small: {:.2f} GB is the least that works here ({:.2f} "
            "dense weights, {:.2f} scratch and state, {:.2f} for {} experts, {:.2f} the process "
            "itself); shorter chunks and contexts need less",
            gb(budget.bytes), gb(fixed + least * slot_bytes) + 0.005, gb(plan.dense + plan.prepared),
            gb(plan.scratch + plan.state), gb(least * slot_bytes), least, gb(plan.process + plan.other)));
  }
  return plan;
}

}  // namespace hadal
