// Structured output: compiling a schema, and finding the tokens that may come next, a token of an answer at a
// time. With HADAL_V4_TOKENIZER=tokenizer.json over DeepSeek-V4's vocabulary of 129,280, else over the
// embedded model's.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>

#include <benchmark/benchmark.h>

#include <hadal/tokenizer.h>

#include "text/grammar_cache.h"

namespace hadal {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer loaded = [] {
    const char* const named = std::getenv("HADAL_V4_TOKENIZER");
    auto result = Tokenizer::load(named != nullptr ? named : HADAL_DEFAULT_TOKENIZER);
    if (!result) {
      std::fprintf(stderr, "%s\n", result.error().message().c_str());
      std::exit(1);
    }
    return std::move(*result);
  }();
  return loaded;
}

const std::shared_ptr<const TokenTrie>& trie() {
  static const auto made = std::make_shared<const TokenTrie>(tokenizer());
  return made;
}

struct Case {
  std::string_view name, schema, document;
};

constexpr Case kCases[] = {
    {"extraction",
     R"({"type": "object", "properties": {
       "title": {"type": "string"}, "date": {"type": "string", "format": "date"},
       "people": {"type": "array", "items": {"type": "object", "properties": {
         "name": {"type": "string"}, "role": {"enum": ["author", "editor", "reader"]}, "age": {"type": "integer"}},
         "required": ["name", "role", "age"], "additionalProperties": false}},
       "summary": {"type": "string", "maxLength": 400}},
       "required": ["title", "date", "people", "summary"], "additionalProperties": false})",
     R"({"title": "The sea at night", "date": "2026-04-24", "people": [{"name": "Ada Okonkwo", "role": "author", "age": 41}, )"
     R"({"name": "Jürgen Weiß", "role": "editor", "age": 58}], "summary": "Below six thousand metres lies the hadal zone: )"
     R"(trenches that no light reaches, and that few have seen. \"It is not empty,\" she writes, and shows why."})"},
    {"any object", "",
     R"({"a": [1, 2.5, {"b": null}], "text": "Below six thousand metres lies the hadal zone."})"},
    {"patterns",
     R"({"type": "object", "properties": {"id": {"type": "string", "pattern": "^[A-Z]{3}-\\d{4,8}$"},
       "mail": {"type": "string", "format": "email"}, "at": {"type": "string", "format": "date-time"},
       "share": {"type": "number", "minimum": 0, "maximum": 100}}, "required": ["id", "mail", "at", "share"]})",
     R"({"id": "ABC-20260424", "mail": "ada.okonkwo@example.org", "at": "2026-04-24T09:30:00Z", "share": 37.25})"},
};

AnswerRules rules_of(const Case& c) {
  AnswerRules rules;
  rules.body = c.schema.empty() ? AnswerRules::Body::json_object : AnswerRules::Body::json_schema;
  rules.strict = true;
  if (!c.schema.empty()) rules.schema = parse_json(c.schema).value();
  return rules;
}

void compile(benchmark::State& state) {
  const Case& c = kCases[state.range(0)];
  const AnswerRules rules = rules_of(c);
  std::size_t exprs = 0;
  for ([[maybe_unused]] const auto step : state) {
    const auto grammar = answer_grammar(rules, dialect_v4(), std::nullopt);
    exprs = grammar->exprs.size();
  }
  state.counters["exprs"] = static_cast<double>(exprs);
  state.SetLabel(std::string(c.name));
}

// Of this thread's own work, whoever else the machine works for.
double thread_microseconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

// Writes the document; `cold` begins with a grammar of which nothing is known, else it has been written
// before.
void masks(benchmark::State& state) {
  const Case& c = kCases[state.range(0)];
  const bool cold = state.range(1) != 0;
  const Grammar grammar = answer_grammar(rules_of(c), dialect_v4(), std::nullopt).value();
  const auto tokens = tokenizer().encode(c.document).value();
  auto compiled = std::make_shared<CompiledGrammar>(grammar, trie());
  TokenSet allowed;
  double most = 0, total = 0, count = 0;
  const auto write = [&] {
    GrammarMatcher matcher(compiled);
    for (const std::int32_t token : tokens) {
      const double start = thread_microseconds();
      matcher.allowed(allowed);
      const bool fits = matcher.accept(token, tokenizer().token_bytes(token));
      const double us = thread_microseconds() - start;
      if (!fits) std::abort();
      most = std::max(most, us);
      total += us;
      ++count;
    }
  };
  if (!cold) {
    write();
    most = total = count = 0;
  }
  for ([[maybe_unused]] const auto step : state) {
    if (cold) compiled = std::make_shared<CompiledGrammar>(grammar, trie());
    write();
  }
  state.counters["us/token"] = total / count;
  state.counters["slowest_us"] = most;
  state.counters["tokens"] = static_cast<double>(tokens.size());
  state.SetLabel(std::string(c.name) + (cold ? ", first time" : ", again"));
}

void vocabulary(benchmark::State& state) {
  for ([[maybe_unused]] const auto step : state)
    benchmark::DoNotOptimize(TokenTrie(tokenizer()).nodes().size());
  state.counters["nodes"] = static_cast<double>(trie()->nodes().size());
}

BENCHMARK(compile)->DenseRange(0, 2)->Unit(benchmark::kMicrosecond);
BENCHMARK(masks)->ArgsProduct({{0, 1, 2}, {0, 1}})->Unit(benchmark::kMillisecond);
BENCHMARK(vocabulary)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
