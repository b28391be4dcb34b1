// Which tokens may come next in an answer: a grammar over bytes, walked along the tokens of a vocabulary.
//
// What was found out about a grammar is kept for all answers that follow it. Inside a frame (a string) the
// tokens that stay inside are found once, whatever the frame stands in and, but near its limit, however long
// it has become; only those that go beyond its end are looked at anew. So the mask of a token that costs a
// walk over the whole vocabulary comes once, and later ones are a look-up and a few steps.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/grammar.h"
#include "text/grammar_machine.h"
#include "text/token_trie.h"

namespace hadal {

// A set of tokens, one bit each.
using TokenSet = std::vector<std::uint64_t>;

// A grammar and what is known of it. Any number of threads may use one.
class CompiledGrammar {
 public:
  // What is found out is begun anew when it has come to `max_bytes`.
  CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> trie,
                  std::size_t max_bytes = std::size_t{8} << 20);

  const TokenTrie& trie() const { return *trie_; }
  std::size_t masks_kept() const;

 private:
  friend class GrammarMatcher;
  struct Space;

  std::shared_ptr<Space> current_space();  // with the lock held

  const Grammar grammar_;
  const std::shared_ptr<const TokenTrie> trie_;
  const std::size_t max_bytes_;
  mutable std::mutex mutex_;
  std::shared_ptr<Space> space_;
};

// One answer, as far as it has come.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<CompiledGrammar> grammar);

  // Reads on; false, and nothing was read, if the grammar does not allow it.
  bool accept(std::int32_t token, std::string_view bytes);  // `bytes` empty: a special token
  bool accept_text(std::string_view bytes);
  bool can_end() const;
  // The tokens that may come next, [ceil(vocab / 64)]. A pure function of what was read: where finding all of
  // them would be too much work, it is those of one byte.
  void allowed(TokenSet& tokens);

 private:
  void settle();  // with the lock held: into the present space

  std::shared_ptr<CompiledGrammar> grammar_;
  std::shared_ptr<CompiledGrammar::Space> space_;
  GrammarMachine::StateId state_;
};

}  // namespace hadal
