#include "engine/grammar_constraint.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace hadal {
namespace {

std::uint64_t bit_of(std::int32_t token) {
  return std::uint64_t{1} << (token % 64);
}

std::size_t word_of(std::int32_t token) {
  return static_cast<std::size_t>(token) / 64;
}

}  // namespace

GrammarConstraint::GrammarConstraint(std::shared_ptr<CompiledGrammar> grammar, Tokenizer tokenizer,
                                     std::int32_t end, std::optional<std::int32_t> think_end)
    : grammar_(std::move(grammar)),
      matcher_(grammar_),
      tokenizer_(std::move(tokenizer)),
      end_(end),
      think_end_(think_end),
      thinking_(think_end.has_value()) {}

// Any text, and its end; never the end of the answer, which has not begun.
void GrammarConstraint::allow_reasoning() {
  const TokenTrie& trie = grammar_->trie();
  const auto vocab = trie.vocab_size();
  allowed_.assign((static_cast<std::size_t>(vocab) + 63) / 64, ~std::uint64_t{0});
  if (vocab % 64 != 0) allowed_.back() = bit_of(vocab) - 1;
  for (const std::int32_t token : trie.added_tokens()) allowed_[word_of(token)] &= ~bit_of(token);
  allowed_[word_of(*think_end_)] |= bit_of(*think_end_);
}

void GrammarConstraint::allow_answer() {
  matcher_.allowed(allowed_);
  const bool nothing = std::all_of(allowed_.begin(), allowed_.end(), [](std::uint64_t w) { return w == 0; });
  if (nothing || matcher_.can_end()) allowed_[word_of(end_)] |= bit_of(end_);
}

void GrammarConstraint::mask(std::span<float> logits) {
  if (!ready_) thinking_ ? allow_reasoning() : allow_answer();
  ready_ = true;
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (std::size_t begin = 0; begin < logits.size(); begin += 64) {
    const std::uint64_t word = begin / 64 < allowed_.size() ? allowed_[begin / 64] : 0;
    if (word == ~std::uint64_t{0}) continue;
    const std::size_t n = std::min<std::size_t>(64, logits.size() - begin);
    for (std::size_t i = 0; i < n; ++i) logits[begin + i] = (word >> i & 1) != 0 ? logits[begin + i] : kNever;
  }
}

void GrammarConstraint::accept(std::int32_t token) {
  if (thinking_) {
    // The reader of the output goes by the text, so that counts too where ordinary tokens write it.
    const std::string_view end = tokenizer_.token_bytes(*think_end_);
    spelt_ += tokenizer_.token_bytes(token);
    const std::size_t at = spelt_.find(end);
    if (at == std::string::npos) {
      if (spelt_.size() >= end.size()) spelt_.erase(0, spelt_.size() - end.size() + 1);
      return;
    }
    thinking_ = false;
    ready_ = false;
    matcher_.accept_text(std::string_view(spelt_).substr(at + end.size()));
    return;
  }
  matcher_.accept(token, tokenizer_.is_added(token) ? std::string_view() : tokenizer_.token_bytes(token));
  ready_ = false;
}

}  // namespace hadal
