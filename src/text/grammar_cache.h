// Grammars of answers by the rules that they were made of: agents ask with the same schemas again and again.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include <hadal/error.h>
#include <hadal/tokenizer.h>

#include "base/sha256.h"
#include "text/answer_grammar.h"
#include "text/grammar_matcher.h"

namespace hadal {

class GrammarCache {
 public:
  // Keeps the `capacity` grammars that were used last.
  GrammarCache(const Tokenizer& tokenizer, const ChatDialect& dialect, std::size_t capacity = 32);

  // From any thread. Errors: those of answer_grammar().
  Result<std::shared_ptr<CompiledGrammar>> get(const AnswerRules& rules);

 private:
  using Entry = std::pair<Sha256, std::shared_ptr<CompiledGrammar>>;

  const ChatDialect& dialect_;
  const std::size_t capacity_;
  std::optional<std::int32_t> dsml_;
  const Tokenizer tokenizer_;

  std::mutex mutex_;
  std::shared_ptr<const TokenTrie> trie_;  // made when it is needed first
  std::list<Entry> entries_;               // last used first
  std::map<Sha256, std::list<Entry>::iterator> places_;
};

}  // namespace hadal
