// Any JSON as the schema of an answer, strict or not, or of a tool's arguments: a grammar or an error, in
// bounded time. Of a grammar: whatever is read of an answer, there is a next token or the end, and the tokens
// that are allowed are taken.
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "../tests/text/tokenizer_fixture.h"
#include "base/check.h"
#include "text/answer_grammar.h"
#include "text/grammar_matcher.h"

namespace {

// The 256 bytes, and a special token.
const std::shared_ptr<const hadal::TokenTrie>& trie() {
  static const auto made = std::make_shared<const hadal::TokenTrie>(
      hadal::Tokenizer::from_json(hadal::tokenizer_json({}, {{"｜DSML｜", false, true}}).dump()).value());
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::uint8_t choice = data[0], seed = data[1];
  auto schema = hadal::parse_json({reinterpret_cast<const char*>(data) + 2, size - 2});
  if (!schema) return 0;
  hadal::AnswerRules rules;
  rules.strict = (choice & 1) != 0;
  if ((choice & 2) != 0) {
    rules.tools.push_back({"f", std::move(*schema), rules.strict});
    if ((choice & 4) != 0) rules.body = hadal::AnswerRules::Body::text;
  } else {
    rules.body = hadal::AnswerRules::Body::json_schema;
    rules.schema = std::move(*schema);
  }
  auto grammar = hadal::answer_grammar(rules, hadal::dialect_v4(), 256, {.max_exprs = 20'000});
  if (!grammar) return 0;
  hadal::GrammarMatcher matcher(std::make_shared<hadal::CompiledGrammar>(std::move(*grammar), trie()));
  hadal::TokenSet allowed;
  std::uint32_t state = seed + 1U;
  for (int step = 0; step < 64; ++step) {
    matcher.allowed(allowed);
    std::int32_t chosen = -1, n = 0;
    for (std::int32_t id = 0; id <= 256; ++id) {
      if ((allowed[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1) == 0) continue;
      state = state * 1664525U + 1013904223U;
      if ((state >> 8) % static_cast<std::uint32_t>(++n) == 0) chosen = id;
    }
    HADAL_CHECK(chosen >= 0 || matcher.can_end());
    if (chosen < 0) break;
    const char byte = static_cast<char>(chosen);
    HADAL_CHECK(matcher.accept(chosen, chosen == 256 ? std::string_view() : std::string_view(&byte, 1)));
  }
  return 0;
}
