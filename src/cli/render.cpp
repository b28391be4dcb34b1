#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/input.h"
#include "text/chat_dialect.h"
#include "text/chat_encoder.h"
#include "text/chat_message.h"
#include "text/json_value.h"

namespace hadal::cli {
namespace {

struct RenderFlags {
  std::string model;
  std::string think;
  bool keep_thinking = false;
  std::string dialect;
  std::string file;
};

Result<const ChatDialect*> choose_dialect(const RenderFlags& flags) {
  if (!flags.dialect.empty()) return find_dialect(flags.dialect);
  if (flags.model.empty()) return &dialect_v4();
  const std::filesystem::path path = std::filesystem::path(flags.model) / "config.json";
  HADAL_ASSIGN_OR_RETURN(const std::string config, read_file(path));
  auto dialect = dialect_of_config(config);
  if (!dialect) return tl::unexpected(std::move(dialect).error().with_context(path.string()));
  return dialect;
}

// What the flags say; without --think it is thinking mode, with the effort that the dialect has by itself.
ChatOptions options_of(const RenderFlags& flags, const ChatDialect& dialect) {
  ChatOptions options;
  options.thinking = flags.think != "off";
  options.drop_thinking = !flags.keep_thinking;
  if (options.thinking && !flags.think.empty()) options.reasoning_effort = dialect.effort_for(flags.think);
  return options;
}

// A request of the OpenAI API: messages, and tools unless tool_choice is "none".
Result<std::vector<ChatMessage>> messages_of_request(const JsonValue& request) {
  const JsonValue* json = request.find("messages");
  if (json == nullptr) return fail(ErrorCode::invalid_argument, "a request needs messages");
  HADAL_ASSIGN_OR_RETURN(std::vector<ChatMessage> messages, messages_from_json(*json));
  const JsonValue* tools = request.find("tools");
  const JsonValue* choice = request.find("tool_choice");
  const bool forbidden = choice != nullptr && choice->is_string() && choice->text == "none";
  if (tools != nullptr && tools->truthy() && !forbidden) {
    HADAL_ASSIGN_OR_RETURN(std::vector<std::string> functions, tools_from_json(*tools));
    declare_tools(messages, std::move(functions));
  }
  return messages;
}

Result<std::string> render(const ChatDialect& dialect, const std::vector<ChatMessage>& messages,
                           const ChatOptions& options, const std::vector<ChatMessage>& context = {}) {
  HADAL_ASSIGN_OR_RETURN(const std::vector<PromptSegment> prompt,
                         encode_chat(dialect, messages, options, context));
  return prompt_text(prompt);
}

// One case of a batch: {name, messages, options}, with options as the official encoder names them.
Result<std::string> render_case(const ChatDialect& dialect, const JsonValue& json,
                                const ChatOptions& defaults) {
  HADAL_ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages, messages_of_request(json));
  ChatOptions options = defaults;
  std::vector<ChatMessage> context;
  if (const JsonValue* given = json.find("options"); given != nullptr) {
    HADAL_ASSIGN_OR_RETURN(options, chat_options_from_json(*given, defaults));
    if (const JsonValue* seen = given->find("context"); seen != nullptr && !seen->is_null()) {
      auto read = messages_from_json(*seen);
      if (!read) return tl::unexpected(std::move(read).error().with_context("context"));
      context = std::move(*read);
    }
  }
  return render(dialect, messages, options, context);
}

std::string render_cases(const ChatDialect& dialect, const JsonValue& cases, const ChatOptions& defaults) {
  std::string out = "[";
  for (const JsonValue& one : cases.items) {
    const JsonValue* name = one.find("name");
    const Result<std::string> prompt = render_case(dialect, one, defaults);
    out += &one == cases.items.data() ? "\n{\"name\": " : ",\n{\"name\": ";
    out += name == nullptr ? "null" : to_python_json(*name);
    out += prompt ? ", \"prompt\": " : ", \"error\": ";
    append_json_string(out, prompt ? *prompt : prompt.error().message());
    out += '}';
  }
  return out += "\n]\n";
}

bool is_batch_of_conversations(const JsonValue& json) {
  for (const JsonValue& item : json.items) {
    if (item.find("messages") != nullptr) return true;
  }
  return false;
}

Result<std::string> render_file(const RenderFlags& flags) {
  HADAL_ASSIGN_OR_RETURN(const ChatDialect* dialect, choose_dialect(flags));
  const ChatOptions options = options_of(flags, *dialect);
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_input(flags.file));
  const auto in_file = [&](Error error) {
    return tl::unexpected(std::move(error).with_context(flags.file == "-" ? "standard input" : flags.file));
  };
  Result<JsonValue> json = parse_json(text, {.python_constants = true});
  if (!json) return in_file(std::move(json).error());
  if (is_batch_of_conversations(*json)) return render_cases(*dialect, *json, options);
  auto messages = json->is_object() ? messages_of_request(*json) : messages_from_json(*json);
  if (!messages) return in_file(std::move(messages).error());
  auto prompt = render(*dialect, *messages, options);
  if (!prompt) return in_file(std::move(prompt).error());
  return prompt;
}

}  // namespace

void register_render(CLI::App& app, Outcome& outcome) {
  const auto flags = std::make_shared<RenderFlags>();
  CLI::App* command = app.add_subcommand("render", "Messages as the exact text of the prompt");
  command->add_option("-m,--model", flags->model, "Model directory: its config.json tells the dialect");
  command
      ->add_option("--think", flags->think, "Thinking: off, low, high or max (without: on, no effort named)")
      ->check(CLI::IsMember({"off", "low", "high", "max"}));
  command->add_flag("--keep-thinking", flags->keep_thinking, "Keep the reasoning of earlier turns");
  command->add_option("--dialect", flags->dialect, "v4 (the default) or v4-0731, whatever the model is")
      ->check(CLI::IsMember({"v4", "v4-0731"}));
  command
      ->add_option(
          "file", flags->file,
          "JSON: an array of messages, a request {messages, tools}, or an array of cases "
          "{name, messages, options}, which gives an array of {name, prompt} or {name, error}; - is stdin")
      ->required();
  command->footer(
      "Example:\n  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | hadal render --think high -\n"
      "docs/chat.md describes the format.");
  command->callback([flags, &outcome] {
    Result<std::string> output = render_file(*flags);
    if (!output) {
      outcome.exit_code = report(output.error());
    } else if (const Status written = write_output(*output); !written) {
      outcome.exit_code = report(written.error());
    }
  });
}

}  // namespace hadal::cli
