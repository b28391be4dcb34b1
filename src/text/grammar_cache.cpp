#include "text/grammar_cache.h"

#include <iterator>

namespace hadal {

GrammarCache::GrammarCache(const Tokenizer& tokenizer, const ChatDialect& dialect, std::size_t capacity)
    : dialect_(dialect), capacity_(capacity), tokenizer_(tokenizer) {
  const auto dsml = tokenizer.id_of(dialect.dsml);
  if (dsml && tokenizer.is_added(*dsml)) dsml_ = dsml;
}

Result<std::shared_ptr<CompiledGrammar>> GrammarCache::get(const AnswerRules& rules) {
  const Sha256 key = sha256(rules.key());
  std::shared_ptr<const TokenTrie> trie;
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = places_.find(key); known != places_.end()) {
      entries_.splice(entries_.begin(), entries_, known->second);
      return entries_.front().second;
    }
    if (trie_ == nullptr) trie_ = std::make_shared<TokenTrie>(tokenizer_);
    trie = trie_;
  }
  // Not under the lock: others need not wait for a large schema.
  HADAL_ASSIGN_OR_RETURN(Grammar grammar, answer_grammar(rules, dialect_, dsml_));
  auto compiled = std::make_shared<CompiledGrammar>(std::move(grammar), std::move(trie));
  const std::lock_guard lock(mutex_);
  if (const auto known = places_.find(key); known != places_.end()) return known->second->second;
  entries_.emplace_front(key, compiled);
  places_.emplace(key, entries_.begin());
  if (entries_.size() > capacity_) {
    places_.erase(entries_.back().first);
    entries_.pop_back();
  }
  return compiled;
}

}  // namespace hadal
