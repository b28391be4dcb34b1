// A model that writes whatever a grammar lets it: at each step a token drawn from the allowed ones, and often
// one that brings the answer nearer to its end, lest it go on for ever.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <hadal/tokenizer.h>

#include "base/rng.h"
#include "text/grammar_matcher.h"

namespace hadal::test {

class RandomAnswer {
 public:
  RandomAnswer(std::shared_ptr<CompiledGrammar> grammar, Tokenizer tokenizer)
      : grammar_(std::move(grammar)), tokenizer_(std::move(tokenizer)) {
    for (const char* const text : {"\"", "}", "]", "</", "｜DSML｜", "1"}) {
      if (const auto id = tokenizer_.id_of(text)) closing_.push_back(*id);
    }
  }

  // The answer; nothing if it has not ended after `max_tokens`.
  std::optional<std::string> write(std::uint64_t seed, std::size_t max_tokens) {
    const Philox random(seed, 11);
    GrammarMatcher matcher(grammar_);
    std::string text;
    std::uint64_t draws = 0;
    const auto draw = [&](std::size_t n) {
      return static_cast<std::size_t>(random.uniform(draws++) * static_cast<double>(n));
    };
    for (std::size_t n = 0; n < max_tokens; ++n) {
      if (matcher.can_end() && draw(3) == 0) return text;
      matcher.allowed(allowed_);
      choices_.clear();
      const bool close = draw(10) < (n < 64 ? 4 : 9);
      const auto has = [&](std::int32_t id) {
        return (allowed_[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1) != 0;
      };
      for (const std::int32_t id : closing_)
        if (close && has(id)) choices_.push_back(id);
      for (std::int32_t id = 0; choices_.empty() && id < tokenizer_.vocab_size(); ++id)
        if (has(id)) all_.push_back(id);
      if (choices_.empty()) choices_.swap(all_);
      all_.clear();
      if (choices_.empty()) return matcher.can_end() ? std::optional(text) : std::nullopt;
      const std::int32_t id = choices_[draw(choices_.size())];
      if (!matcher.accept(id, tokenizer_.is_added(id) ? std::string_view() : tokenizer_.token_bytes(id)))
        return std::nullopt;
      text += tokenizer_.token_bytes(id);
    }
    return std::nullopt;
  }

 private:
  std::shared_ptr<CompiledGrammar> grammar_;
  Tokenizer tokenizer_;
  std::vector<std::int32_t> closing_, choices_, all_;
  TokenSet allowed_;
};

}  // namespace hadal::test
