#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "cli/command.h"
#include "cli/input.h"
#include "text/json_value.h"
#include "text/output_parser.h"

namespace hadal::cli {
namespace {

struct ParseFlags {
  std::string think;
  bool strict = false;
  std::string tools;
  std::string file;
};

void append_member(std::string& out, std::string_view key, std::string_view value) {
  append_json_string(out, key);
  out += ": ";
  append_json_string(out, value);
}

std::string to_json(const ParsedMessage& message) {
  std::string out = "{\"role\": \"assistant\", ";
  append_member(out, "content", message.content);
  out += ", ";
  append_member(out, "reasoning_content", message.reasoning_content);
  out += ", \"tool_calls\": [";
  for (const ParsedToolCall& call : message.tool_calls) {
    if (&call != message.tool_calls.data()) out += ", ";
    out += "{\"type\": \"function\", \"function\": {";
    append_member(out, "name", call.name);
    out += ", ";
    append_member(out, "arguments", call.arguments);
    out += "}}";
  }
  return out += "]}";
}

Result<ParsedMessage> parse(std::string_view text, bool thinking, bool strict, OutputParserOptions options) {
  if (strict) return parse_output_strict(text, thinking);
  options.thinking = thinking;
  return parse_output(text, std::move(options));
}

// One case of a batch: {name, text, thinking_mode}; any mode but "thinking" is chat, as in the official
// parser.
Result<ParsedMessage> parse_case(const JsonValue& json, const ParseFlags& flags,
                                 const OutputParserOptions& options) {
  const JsonValue* text = json.find("text");
  if (text == nullptr || !text->is_string()) return fail(ErrorCode::invalid_argument, "a case needs a text");
  const JsonValue* mode = json.find("thinking_mode");
  return parse(text->text, mode == nullptr ? options.thinking : mode->text == "thinking", flags.strict,
               options);
}

std::string parse_cases(const JsonValue& cases, const ParseFlags& flags, const OutputParserOptions& options) {
  std::string out = "[";
  for (const JsonValue& one : cases.items) {
    const JsonValue* name = one.find("name");
    const Result<ParsedMessage> message = parse_case(one, flags, options);
    out += &one == cases.items.data() ? "\n{\"name\": " : ",\n{\"name\": ";
    out += name == nullptr ? "null" : to_python_json(*name);
    if (message) {
      out += ", \"message\": " + to_json(*message);
      if (message->end == OutputEnd::truncated_call) out += ", \"truncated_call\": true";
    } else {
      out += ", ";
      append_member(out, "error", message.error().message());
    }
    out += '}';
  }
  return out += "\n]\n";
}

// A batch is a JSON array of objects, at least one with a text; anything else is output of a model.
bool is_batch(const JsonValue& json) {
  bool has_text = false;
  for (const JsonValue& item : json.items) {
    if (!item.is_object()) return false;
    has_text = has_text || item.find("text") != nullptr;
  }
  return has_text;
}

Result<std::string> parse_input(const ParseFlags& flags) {
  OutputParserOptions options;
  options.thinking = flags.think != "off";
  if (!flags.tools.empty()) {
    HADAL_ASSIGN_OR_RETURN(const std::string text, read_input(flags.tools));
    auto tools = parse_json(text, {.python_constants = true});
    if (!tools) return tl::unexpected(std::move(tools).error().with_context(flags.tools));
    options.schemas = std::make_shared<const ToolSchemas>(tool_schemas_from_json(*tools));
    options.plain_xml = true;
  }
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_input(flags.file));
  const Result<JsonValue> json = parse_json(text);
  if (json && is_batch(*json)) return parse_cases(*json, flags, options);
  HADAL_ASSIGN_OR_RETURN(const ParsedMessage message, parse(text, options.thinking, flags.strict, options));
  if (message.end == OutputEnd::truncated_call) {
    std::fputs("hadal: the output ends within a tool call, which is left out\n", stderr);
  }
  return to_json(message) + "\n";
}

}  // namespace

void register_parse(CLI::App& app, Outcome& outcome) {
  const auto flags = std::make_shared<ParseFlags>();
  CLI::App* command = app.add_subcommand("parse", "The text of a completion as a message in JSON");
  command
      ->add_option("--think", flags->think,
                   "off: the text begins with the answer; else it begins with reasoning")
      ->check(CLI::IsMember({"off", "low", "high", "max"}));
  command->add_flag("--strict", flags->strict, "Fail where DeepSeek's official parser fails");
  command->add_option(
      "--tools", flags->tools,
      "JSON array of tools: their schemas decide the types of arguments, and calls in plain XML count");
  command
      ->add_option("file", flags->file,
                   "The text, or a JSON array of cases {name, text, thinking_mode}, which gives an array of "
                   "{name, message} or {name, error}; - is stdin")
      ->required();
  command->footer(
      "Example:\n  printf 'Two and two.</think>4' | hadal parse -\n"
      "docs/chat.md says what becomes of malformed text.");
  command->callback([flags, &outcome] {
    Result<std::string> output = parse_input(*flags);
    if (!output) {
      outcome.exit_code = report(output.error());
    } else if (const Status written = write_output(*output); !written) {
      outcome.exit_code = report(written.error());
    }
  });
}

}  // namespace hadal::cli
