#include "engine/logit_rules.h"

namespace hadal {

bool LogitRules::active() const {
  const bool penalises = (presence_penalty != 0 || frequency_penalty != 0) && !counts_.empty();
  return !bias.empty() || penalises || (constraint != nullptr && constraint->active());
}

void LogitRules::apply(std::span<float> logits) const {
  for (const auto& [token, amount] : bias) {
    if (static_cast<std::size_t>(token) < logits.size()) logits[static_cast<std::size_t>(token)] += amount;
  }
  if (presence_penalty != 0 || frequency_penalty != 0) {
    for (const auto& [token, count] : counts_) {
      logits[static_cast<std::size_t>(token)] -=
          static_cast<float>(presence_penalty + frequency_penalty * static_cast<double>(count));
    }
  }
  if (constraint != nullptr && constraint->active()) constraint->mask(logits);
}

void LogitRules::accept(std::int32_t token) {
  if (presence_penalty != 0 || frequency_penalty != 0) ++counts_[token];
  if (constraint != nullptr) constraint->accept(token);
}

}  // namespace hadal
