// random_answers TOKENIZER: reads lines {"schema": ..., "strict": bool, "count": n} or {"tools": [...], ...}
// and writes for each what a model without a mind answers under that grammar, for tests/serve/schema_test.py
// to check:
// {"documents": [...], "unfinished": n}, of tools {"calls": [[name, arguments], ...]}, or {"error": "..."}.
#include <cstdio>
#include <iostream>
#include <string>

#include <nlohmann/json.hpp>

#include "text/grammar_cache.h"
#include "text/output_parser.h"
#include "text/random_answer.h"

namespace {

using namespace hadal;

AnswerRules rules_of(const JsonValue& line, bool strict) {
  AnswerRules rules;
  rules.strict = strict;
  if (const JsonValue* schema = line.find("schema")) {
    rules.body = AnswerRules::Body::json_schema;
    rules.schema = *schema;
  }
  if (const JsonValue* tools = line.find("tools")) {
    for (const JsonMember& tool : tools->members) rules.tools.push_back({tool.key, tool.value, strict});
  }
  return rules;
}

std::string answer(GrammarCache& grammars, const Tokenizer& tokenizer, const JsonValue& line) {
  const JsonValue* strict = line.find("strict");
  const AnswerRules rules = rules_of(line, strict == nullptr || strict->boolean);
  const auto grammar = grammars.get(rules);
  nlohmann::ordered_json out;
  if (!grammar) {
    out["error"] = grammar.error().message();
    return out.dump();
  }
  test::RandomAnswer model(*grammar, tokenizer);
  out["documents"] = nlohmann::ordered_json::array();
  out["calls"] = nlohmann::ordered_json::array();
  int unfinished = 0;
  const std::uint64_t count = std::stoull(line.find("count")->text);
  for (std::uint64_t seed = 0; seed < count; ++seed) {
    const auto text = model.write(seed, 3000);
    if (!text) {
      ++unfinished;
    } else if (rules.tools.empty()) {
      out["documents"].push_back(*text);
    } else {
      const ParsedMessage message = parse_output(*text, {.thinking = false});
      if (message.end != OutputEnd::tool_calls || !message.content.empty())
        out["calls"].push_back({"?", *text});
      for (const ParsedToolCall& call : message.tool_calls)
        out["calls"].push_back({call.name, call.arguments});
    }
  }
  out["unfinished"] = unfinished;
  return out.dump();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto tokenizer = Tokenizer::load(argv[1]);
  if (!tokenizer) {
    std::fprintf(stderr, "%s\n", tokenizer.error().message().c_str());
    return 1;
  }
  GrammarCache grammars(*tokenizer, dialect_v4());
  std::string text;
  while (std::getline(std::cin, text)) {
    const auto line = parse_json(text);
    std::puts(line ? answer(grammars, *tokenizer, *line).c_str() : R"({"error": "no JSON"})");
  }
  return 0;
}
