#include "text/chat_message.h"

#include <utility>

#include <fmt/format.h>

namespace hadal {
namespace {

tl::unexpected<Error> invalid(std::string message) {
  return fail(ErrorCode::invalid_argument, std::move(message));
}

// The text parts of a content array, two newlines between; whatever else is in it leaves a note.
Result<std::string> flatten_parts(const JsonValue& parts) {
  std::string out;
  for (const JsonValue& part : parts.items) {
    if (&part != parts.items.data()) out += "\n\n";
    if (!part.is_object()) return invalid("a part of content must be an object with type and text");
    const JsonValue* type = part.find("type");
    const JsonValue* text = part.find("text");
    if (type != nullptr && type->is_string() && type->text == "text") {
      if (text == nullptr) continue;
      if (!text->is_string()) return invalid("the text of a part of content must be a string");
      out += text->text;
    } else {
      out += fmt::format("[Unsupported {}]", type != nullptr && type->is_string() ? type->text : "None");
    }
  }
  return out;
}

// What Python's str() makes of a number or a boolean.
std::string python_str(const JsonValue& value) {
  if (value.kind == JsonValue::Kind::boolean) return value.boolean ? "True" : "False";
  if (value.text.ends_with("Infinity")) return value.text.front() == '-' ? "-inf" : "inf";
  if (value.text == "NaN") return "nan";
  const std::string number = python_number(value.text);
  return number.ends_with("Infinity") ? (number.front() == '-' ? "-inf" : "inf") : number;
}

// content and reasoning_content. `null_text` is what the official template makes of null in this role.
Result<std::string> text_of(const JsonValue& value, std::string_view field, std::string_view null_text,
                            bool numbers) {
  switch (value.kind) {
    case JsonValue::Kind::null:
      return std::string(null_text);
    case JsonValue::Kind::string:
      return value.text;
    case JsonValue::Kind::array:
      return flatten_parts(value);
    case JsonValue::Kind::boolean:
    case JsonValue::Kind::number:
      if (numbers) return python_str(value);
      break;
    case JsonValue::Kind::object:
      break;
  }
  return invalid(fmt::format("{} must be a string, null or an array of parts", field));
}

// An identifier that clients send as a string, rarely as a number.
std::string id_of(const JsonValue* value) {
  if (value == nullptr) return {};
  if (value->is_string()) return value->text;
  return value->kind == JsonValue::Kind::number ? python_number(value->text) : std::string();
}

Result<ToolCall> tool_call_from_json(const JsonValue& json) {
  const JsonValue* function = json.find("function");
  if (function == nullptr || !function->is_object()) {
    return invalid("a tool call needs a function with name and arguments");
  }
  const JsonValue* name = function->find("name");
  if (name == nullptr || !name->is_string()) return invalid("the function of a tool call needs a name");
  const JsonValue* arguments = function->find("arguments");
  if (arguments == nullptr) return invalid(fmt::format("the call of {} needs arguments", quoted(name->text)));
  ToolCall call;
  call.id = id_of(json.find("id"));
  if (call.id.empty()) call.id = id_of(function->find("id"));
  call.name = name->text;
  call.arguments_is_text = arguments->is_string();
  call.arguments = arguments->is_string() ? arguments->text : to_python_json(*arguments);
  return call;
}

Result<ChatMessage> message_from_json(const JsonValue& json) {
  if (!json.is_object()) return invalid("a message must be an object");
  ChatMessage message;
  const JsonValue* role = json.find("role");
  if (role == nullptr || !role->is_string()) return invalid("a message needs a role");
  message.role = role->text;

  const bool is_user = message.role == "user";
  const bool is_tool = message.role == "tool";
  const bool is_assistant = message.role == "assistant";
  // "None" for a tool's null and for a reminder without content is what the official template writes.
  const bool is_reminder = message.role == "latest_reminder";
  const JsonValue* content = json.find("content");
  const JsonValue none;
  if (is_reminder && content == nullptr) content = &none;
  const bool is_turn = is_user || message.role == "developer";
  const bool is_verbatim = is_turn || is_tool || is_reminder;  // in the other roles 0 and false are "" too
  if (content != nullptr && (is_verbatim || content->truthy())) {
    HADAL_ASSIGN_OR_RETURN(message.content,
                           text_of(*content, "content", is_tool || is_reminder ? "None" : "", !is_turn));
  }
  if (const JsonValue* task = json.find("task"); task != nullptr && !task->is_null()) {
    if (!task->is_string()) return invalid("task must be a string");
    message.task = task->text;
  }
  if (is_tool) message.tool_call_id = id_of(json.find("tool_call_id"));
  if (is_user || is_tool) return message;  // merging keeps nothing else of them

  if (const JsonValue* tools = json.find("tools"); tools != nullptr && tools->truthy()) {
    HADAL_ASSIGN_OR_RETURN(message.tools, tools_from_json(*tools));
  }
  if (const JsonValue* format = json.find("response_format"); format != nullptr && format->truthy()) {
    message.response_format = to_python_json(*format);
  }
  if (!is_assistant) return message;

  if (const JsonValue* reasoning = json.find("reasoning_content");
      reasoning != nullptr && reasoning->truthy()) {
    HADAL_ASSIGN_OR_RETURN(message.reasoning_content, text_of(*reasoning, "reasoning_content", "", true));
  }
  if (const JsonValue* wo_eos = json.find("wo_eos"); wo_eos != nullptr) message.wo_eos = wo_eos->truthy();
  if (const JsonValue* calls = json.find("tool_calls"); calls != nullptr && calls->truthy()) {
    if (!calls->is_array()) return invalid("tool_calls must be an array");
    for (const JsonValue& call : calls->items) {
      HADAL_ASSIGN_OR_RETURN(ToolCall made, tool_call_from_json(call));
      message.tool_calls.push_back(std::move(made));
    }
  }
  return message;
}

}  // namespace

Result<std::vector<ChatMessage>> messages_from_json(const JsonValue& json) {
  if (!json.is_array()) return invalid("messages must be an array");
  std::vector<ChatMessage> messages;
  messages.reserve(json.items.size());
  for (std::size_t i = 0; i < json.items.size(); ++i) {
    auto message = message_from_json(json.items[i]);
    if (!message)
      return tl::unexpected(std::move(message).error().with_context(fmt::format("messages[{}]", i)));
    message->position = i;
    messages.push_back(std::move(*message));
  }
  return messages;
}

Result<std::vector<std::string>> tools_from_json(const JsonValue& json) {
  if (!json.is_array()) return invalid("tools must be an array");
  std::vector<std::string> tools;
  for (const JsonValue& tool : json.items) {
    const JsonValue* function = tool.find("function");
    if (function == nullptr) return invalid(fmt::format("tools[{}] has no function", tools.size()));
    tools.push_back(to_python_json(*function));
  }
  return tools;
}

void declare_tools(std::vector<ChatMessage>& messages, std::vector<std::string> tools) {
  if (tools.empty()) return;
  auto system = messages.begin();
  while (system != messages.end() && system->role != "system") ++system;
  if (system == messages.end()) {
    system = messages.emplace(messages.begin());
    system->role = "system";
  }
  for (std::string& tool : tools) system->tools.push_back(std::move(tool));
}

}  // namespace hadal
