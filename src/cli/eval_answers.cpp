#include "cli/eval_answers.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/progress.h"
#include "cli/prompt.h"
#include "text/chat_dialect.h"
#include "text/output_parser.h"

namespace hadal::cli {
namespace {

using Json = nlohmann::ordered_json;

class AnswerDraws {
 public:
  explicit AnswerDraws(std::uint64_t seed) : random_(seed, 0x616e7377) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random_.uniform(counter_++) * static_cast<double>(high - low + 1));
  }
  template <std::size_t kN>
  std::string_view one_of(const std::array<std::string_view, kN>& list) {
    return list[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(kN) - 1))];
  }

 private:
  Philox random_;
  std::uint64_t counter_ = 0;
};

struct Call {
  std::string name, arguments;
};

// What the model said, taken apart.
struct Reply {
  std::string content;
  std::vector<Call> calls;
};

struct Kind {
  std::string name;
  std::int64_t right = 0, trials = 0;
};

Result<Reply> ask(const Engine& engine, const std::vector<ChatMessage>& messages, bool thinking,
                  bool tool_calls) {
  HADAL_ASSIGN_OR_RETURN(const ChatDialect* const dialect, dialect_of_config(engine.info().config_json));
  HADAL_ASSIGN_OR_RETURN(
      const std::vector<std::int32_t> prompt,
      encode_turn(engine.tokenizer(), *dialect, chat_options(*dialect, thinking ? "high" : "off"), messages));
  GenerationOptions options;
  options.sampling.temperature = 0;
  options.max_tokens = 160;
  options.stop_tokens = {engine.info().eos_token};
  options.cancelled = interrupted;
  Sequence sequence = engine.start();
  HADAL_ASSIGN_OR_RETURN(const Generation generation, engine.generate(sequence, prompt, options));
  if (interrupted()) return fail(ErrorCode::cancelled, "stopped");
  OutputParserOptions parsing;
  parsing.thinking = thinking;
  parsing.tool_calls = tool_calls;
  OutputParser parser(parsing);
  std::vector<OutputEvent> events;
  parser.feed(generation.text, events);
  parser.finish(events);
  Reply reply;
  for (const OutputEvent& event : events) {
    if (event.kind == OutputEvent::Kind::content) reply.content += event.text;
    if (event.kind == OutputEvent::Kind::tool_call_start) reply.calls.push_back({event.text, ""});
    if (event.kind == OutputEvent::Kind::tool_call_arguments) reply.calls.back().arguments += event.text;
  }
  return reply;
}

Status print_kinds(const char* task, const std::vector<Kind>& kinds, bool as_json) {
  Kind all;
  for (const Kind& kind : kinds) {
    all.right += kind.right;
    all.trials += kind.trials;
  }
  const auto accuracy = [](const Kind& k) {
    return static_cast<double>(k.right) / static_cast<double>(std::max<std::int64_t>(k.trials, 1));
  };
  if (as_json) {
    Json json = {{"task", task}, {"rows", Json::array()}, {"accuracy", accuracy(all)}};
    for (const Kind& kind : kinds) {
      json["rows"].push_back({{"kind", kind.name},
                              {"correct", kind.right},
                              {"trials", kind.trials},
                              {"accuracy", accuracy(kind)}});
    }
    fmt::print("{}\n", json.dump());
    return {};
  }
  for (const Kind& kind : kinds)
    fmt::print("{:<12} {:>9}\n", kind.name, fmt::format("{}/{}", kind.right, kind.trials));
  fmt::print("accuracy {:.4f} ({} of {})\n", accuracy(all), all.right, all.trials);
  return {};
}

// The tools as models/nano knows them (tools/nano_corpus.py).
constexpr std::string_view kTools = R"([
{"type": "function", "function": {"name": "calculator", "description": "Computes an expression.", "parameters":
 {"type": "object", "properties": {"expression": {"type": "string", "description": "What to compute"}},
  "required": ["expression"]}}},
{"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters":
 {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}, "required": ["city"]}}},
{"type": "function", "function": {"name": "read_file", "description": "Reads a file.", "parameters":
 {"type": "object", "properties": {"path": {"type": "string", "description": "Which file"}},
  "required": ["path"]}}}])";
constexpr std::array<std::string_view, 3> kToolNames = {"calculator", "clock", "read_file"};
constexpr std::array<std::string_view, 10> kCities = {"Paris",  "Berlin", "Rome",  "Madrid", "Oslo",
                                                      "Moscow", "Tokyo",  "Cairo", "Lima",   "Dublin"};
constexpr std::array<std::string_view, 8> kWords = {"apple", "river", "garden", "window",
                                                    "song",  "stone", "letter", "horse"};

struct ToolQuestion {
  std::string text, parameter, argument;
};

ToolQuestion tool_question(std::string_view tool, AnswerDraws& draws) {
  if (tool == "calculator") {
    constexpr std::array<std::string_view, 3> kOperators = {"+", "-", "*"};
    const std::int64_t a = draws.between(10, 999), b = draws.between(10, 999);
    const std::string expression = fmt::format("{} {} {}", a, draws.one_of(kOperators), b);
    return {fmt::format("Use the calculator: {}", expression), "expression", expression};
  }
  if (tool == "clock") {
    const std::string city(draws.one_of(kCities));
    return {fmt::format("What time is it in {}?", city), "city", city};
  }
  const std::string path = fmt::format("{}.txt", draws.one_of(kWords));
  return {fmt::format("What is in the file {}?", path), "path", path};
}

bool calls_exactly(const Reply& reply, std::string_view tool, const ToolQuestion& question) {
  if (reply.calls.size() != 1 || reply.calls[0].name != tool) return false;
  const Json arguments = Json::parse(reply.calls[0].arguments, nullptr, false);
  return arguments.is_object() && arguments == Json{{question.parameter, question.argument}};
}

}  // namespace

Status eval_arithmetic(const EngineOptions& engine_options, const AnswerOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const Engine engine, Engine::open(engine_options));
  AnswerDraws draws(options.seed);
  std::vector<Kind> kinds = {{"addition"}, {"subtraction"}, {"product"}};
  Progress bar;
  std::int64_t done = 0;
  for (std::size_t k = 0; k < kinds.size(); ++k) {
    Kind& kind = kinds[k];
    for (kind.trials = 0; kind.trials < options.trials; ++kind.trials) {
      std::int64_t a = draws.between(k == 2 ? 2 : 1, k == 2 ? 9 : 99);
      std::int64_t b = draws.between(k == 2 ? 2 : 1, k == 2 ? 9 : 99);
      if (k == 1 && a < b) std::swap(a, b);
      const std::int64_t answer = k == 0 ? a + b : k == 1 ? a - b : a * b;
      const std::string question = fmt::format("What is {} {} {}?", a, "+-*"[k], b);
      HADAL_ASSIGN_OR_RETURN(const Reply reply, ask(engine, {text_message("user", question)}, true, false));
      kind.right += reply.content == std::to_string(answer) ? 1 : 0;
      bar.show(++done, options.trials * static_cast<std::int64_t>(kinds.size()), kind.name);
    }
  }
  bar.clear();
  return print_kinds("arithmetic", kinds, options.json);
}

Status eval_tools(const EngineOptions& engine_options, const AnswerOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const Engine engine, Engine::open(engine_options));
  HADAL_ASSIGN_OR_RETURN(const JsonValue json, parse_json(kTools));
  HADAL_ASSIGN_OR_RETURN(const std::vector<std::string> tools, tools_from_json(json));
  AnswerDraws draws(options.seed);
  std::vector<Kind> kinds;
  Progress bar;
  std::int64_t done = 0;
  for (const std::string_view tool : kToolNames) {
    Kind& kind = kinds.emplace_back();
    kind.name = tool;
    for (kind.trials = 0; kind.trials < options.trials; ++kind.trials) {
      const ToolQuestion question = tool_question(tool, draws);
      std::vector<ChatMessage> messages = {text_message("system", "You are a helpful assistant."),
                                           text_message("user", question.text)};
      declare_tools(messages, tools);
      HADAL_ASSIGN_OR_RETURN(const Reply reply, ask(engine, messages, false, true));
      kind.right += calls_exactly(reply, tool, question) ? 1 : 0;
      bar.show(++done, options.trials * static_cast<std::int64_t>(kToolNames.size()), kind.name);
    }
  }
  bar.clear();
  return print_kinds("tools", kinds, options.json);
}

}  // namespace hadal::cli
