// A model that writes what it is told: the test double behind the scheduler for tests of protocols. Its next
// token is a function of the tokens before, as a model's is, so caches, preemption and replay work on it
// alike.
//
// The reply to a prompt is, in this order:
// - what stands in the last user turn between `REPLY(` and `)REPLY`, a JSON string (special tokens in it are
// meant);
// - that of the first rule whose `match` occurs in the last user turn, and whose `turn`, if it has one, is
// the
//   number of assistant turns before;
// - "ok" (after "</think>" if the turn begins with thinking).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/runner.h"

namespace hadal::test {

struct ScriptRule {
  std::string match;
  std::int64_t turn = -1;  // any
  std::string reply;
};

class ScriptedRunner final : public Runner {
 public:
  // `model` gives the layout of states and the vocabulary; it is never run.
  ScriptedRunner(Runner& model, Tokenizer tokenizer, std::vector<ScriptRule> rules, int step_ms = 0);

  const StateLayout& layout() const override { return model_.layout(); }
  std::int64_t vocab_size() const override { return model_.vocab_size(); }
  std::int64_t context() const override { return model_.context(); }
  std::uint64_t fingerprint() const override { return model_.fingerprint() + 1; }
  Result<std::span<const float>> forward(std::span<const RunItem> items) override;

 private:
  std::int32_t next_token(std::span<const std::int32_t> history);
  const std::vector<std::int32_t>& reply_tokens(const std::string& reply);

  Runner& model_;
  Tokenizer tokenizer_;
  std::vector<ScriptRule> rules_;
  int step_ms_;
  std::int32_t user_, assistant_, think_, eos_;
  std::map<std::string, std::vector<std::int32_t>> replies_;
  std::vector<float> logits_;
};

}  // namespace hadal::test
