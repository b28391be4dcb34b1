#include "text/chat_dialect.h"

#include <array>
#include <string>

#include <fmt/format.h>

#include "text/json_value.h"

namespace hadal {
namespace {

constexpr std::string_view kAbsoluteMaximum =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve "
    "the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and "
    "adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n"
    "\n";

constexpr std::string_view kBeyondMaximum =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every causal chain "
    "to its root, and resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and "
    "are certain that no assumption remains unchecked and no error remains undiscovered.\n"
    "\n";

constexpr std::string_view kToolsHead =
    "## Tools\n"
    "\n"
    "You have access to a set of tools to help answer the user's question. You can invoke tools by "
    "writing a \"<｜DSML｜tool_calls>\" block like the following:\n"
    "\n"
    "<｜DSML｜tool_calls>\n"
    "<｜DSML｜invoke name=\"$TOOL_NAME\">\n"
    "<｜DSML｜parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</｜DSML｜parameter>\n"
    "...\n"
    "</｜DSML｜invoke>\n"
    "<｜DSML｜invoke name=\"$TOOL_NAME2\">\n"
    "...\n"
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>\n"
    "\n"
    "String parameters should be specified as is and set `string=\"true\"`. For all other types "
    "(numbers, booleans, arrays, objects), pass the value in JSON format and set `string=\"false\"`.\n"
    "\n"
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning "
    "inside <think>...</think> BEFORE any tool calls or final response.\n"
    "\n"
    "Otherwise, output directly after </think> with tool calls or final response.\n"
    "\n"
    "### Available Tool Schemas\n"
    "\n";

constexpr std::string_view kToolsTail =
    "\n"
    "\n"
    "You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n";

constexpr std::string_view kResponseFormatHead =
    "## Response Format:\n"
    "\n"
    "You MUST strictly adhere to the following schema to reply:\n";

constexpr std::string_view kJsonObjectText =
    "You are a helpful assistant designed to output JSON.\n"
    "## Response Format:\n"
    "\n"
    "Reply with JSON object ONLY.";

constexpr std::array kTasks = {
    TaskToken{"action", "<｜action｜>"},       TaskToken{"query", "<｜query｜>"},
    TaskToken{"authority", "<｜authority｜>"}, TaskToken{"domain", "<｜domain｜>"},
    TaskToken{"title", "<｜title｜>"},         TaskToken{"read_url", "<｜read_url｜>"},
};

constexpr std::array kEffortsV4 = {
    ReasoningEffort{"high", ""},
    ReasoningEffort{"max", kAbsoluteMaximum},
};

constexpr std::array kEffortsV40731 = {
    ReasoningEffort{"low", ""},
    ReasoningEffort{"high", kAbsoluteMaximum},
    ReasoningEffort{"max", kBeyondMaximum},
};

constexpr ChatDialect kV4 = {
    .name = "v4",
    .tasks = kTasks,
    .efforts = kEffortsV4,
    .tools_head = kToolsHead,
    .tools_tail = kToolsTail,
    .response_format_head = kResponseFormatHead,
    .json_object_text = kJsonObjectText,
};

constexpr ChatDialect kV40731 = {
    .name = "v4-0731",
    .tasks = kTasks,
    .efforts = kEffortsV40731,
    .tools_head = kToolsHead,
    .tools_tail = kToolsTail,
    .response_format_head = kResponseFormatHead,
    .json_object_text = kJsonObjectText,
};

constexpr std::array kDialects = {&kV4, &kV40731};

}  // namespace

const ReasoningEffort* ChatDialect::find_effort(std::string_view level) const {
  for (const ReasoningEffort& effort : efforts) {
    if (effort.level == level) return &effort;
  }
  return nullptr;
}

std::string_view ChatDialect::effort_for(std::string_view level) const {
  return find_effort(level) != nullptr ? level : efforts.front().level;
}

const ChatDialect& dialect_v4() {
  return kV4;
}

const ChatDialect& dialect_v4_0731() {
  return kV40731;
}

Result<const ChatDialect*> find_dialect(std::string_view name) {
  std::string known;
  for (const ChatDialect* dialect : kDialects) {
    if (dialect->name == name) return dialect;
    known.append(known.empty() ? "" : ", ").append(dialect->name);
  }
  return fail(ErrorCode::invalid_argument,
              fmt::format("unknown chat dialect {} (known: {})", quoted(name), known));
}

Result<const ChatDialect*> dialect_of_config(std::string_view config_json) {
  HADAL_ASSIGN_OR_RETURN(const JsonValue config, parse_json(config_json, {.python_constants = true}));
  if (!config.is_object()) return fail(ErrorCode::corrupt, "config.json is not a JSON object");
  for (const JsonMember& member : config.members) {
    if (member.key.starts_with("dspark_")) return &kV40731;
  }
  return &kV4;
}

}  // namespace hadal
