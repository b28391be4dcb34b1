// Keeps an answer within a grammar: reasoning runs free up to </think>, then only tokens are left that the
// grammar allows, and the end where it may end. Special tokens come nowhere but where the grammar has them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <hadal/tokenizer.h>

#include "engine/logit_rules.h"
#include "text/grammar_matcher.h"

namespace hadal {

class GrammarConstraint final : public TokenConstraint {
 public:
  // `end`: the token that ends an answer. `think_end`: the token that ends reasoning, if it begins with such.
  GrammarConstraint(std::shared_ptr<CompiledGrammar> grammar, Tokenizer tokenizer, std::int32_t end,
                    std::optional<std::int32_t> think_end);

  // What the client began the answer with. False if the grammar does not allow it.
  bool begin_with(std::string_view text) { return matcher_.accept_text(text); }

  bool active() const override { return true; }
  void mask(std::span<float> logits) override;
  void accept(std::int32_t token) override;

 private:
  void allow_reasoning();
  void allow_answer();

  std::shared_ptr<CompiledGrammar> grammar_;
  GrammarMatcher matcher_;
  Tokenizer tokenizer_;
  std::int32_t end_;
  std::optional<std::int32_t> think_end_;
  bool thinking_;
  std::string spelt_;  // the end of the reasoning, in which ordinary tokens may spell its end
  TokenSet allowed_;   // of the token to come, while `ready_`
  bool ready_ = false;
};

}  // namespace hadal
