// Requests of the Anthropic Messages API.
#include <fmt/format.h>

#include "serve/request_parts.h"

namespace hadal::serve {
namespace {

class MessageReader {
 public:
  MessageReader(std::optional<ApiError>& error, Request& request) : error_(error), request_(request) {}

  void read(const JsonValue& json, const std::string& path) {
    Fields fields(json, path, error_);
    std::string role = fields.string("role");
    if (role == "ctx" || role == "msg") role = "user";  // of newer agents; what they say is the user's
    if (role != "user" && role != "assistant" && role != "system")
      return fields.fail("role", "must be user, assistant or system");
    const JsonValue* content = fields.get("content");
    if (content == nullptr || (!content->is_string() && !content->is_array()))
      return fields.fail("content", "must be a string or an array of blocks");
    if (role == "system") {
      std::string text = without_volatile_parts(text_of_content(fields, "content"));
      if (!is_billing_header(text)) add("system", std::move(text));
    } else if (content->is_string()) {
      add(role, content->text);
    } else if (role == "user") {
      for (std::size_t i = 0; i < content->items.size(); ++i)
        read_user_block(content->items[i], fmt::format("{}.content[{}]", path, i));
    } else {
      ChatMessage& message = add("assistant", "");
      for (std::size_t i = 0; i < content->items.size(); ++i)
        read_assistant_block(message, content->items[i], fmt::format("{}.content[{}]", path, i));
    }
  }

 private:
  ChatMessage& add(const std::string& role, std::string text) {
    ChatMessage message;
    message.role = role;
    message.content = std::move(text);
    message.position = request_.messages.size();
    request_.messages.push_back(std::move(message));
    request_.turn_ids.emplace_back();
    return request_.messages.back();
  }

  void read_user_block(const JsonValue& block, const std::string& path) {
    Fields fields(block, path, error_);
    const std::string type = fields.string("type");
    if (type == "text") {
      add("user", fields.string("text"));
    } else if (type == "tool_result") {
      ChatMessage& message = add("tool", text_of_content(fields, "content"));
      message.tool_call_id = fields.string("tool_use_id");
    } else if (type.empty()) {
      fields.fail("type", "is missing");
    } else {
      add("user", unsupported_part(type));
    }
  }

  void read_assistant_block(ChatMessage& message, const JsonValue& block, const std::string& path) {
    Fields fields(block, path, error_);
    const std::string type = fields.string("type");
    if (type == "text") {
      if (!message.content.empty()) message.content += "\n\n";
      message.content += fields.string("text");
    } else if (type == "thinking") {
      message.reasoning_content += fields.string("thinking");
      request_.turn_ids.back() = fields.string("signature");
    } else if (type == "redacted_thinking") {
      request_.turn_ids.back() = fields.string("data");
    } else if (type == "tool_use") {
      ToolCall call;
      call.id = fields.string("id");
      call.name = fields.string("name");
      if (call.name.empty()) fields.fail("name", "is missing");
      const JsonValue* input = fields.object("input");
      call.arguments = input == nullptr ? "{}" : to_python_json(*input);
      message.tool_calls.push_back(std::move(call));
    } else if (type.empty()) {
      fields.fail("type", "is missing");
    }  // server tools and their results: not of this server
  }

  std::optional<ApiError>& error_;
  Request& request_;
};

void read_tools(Fields& fields, const RequestLimits& limits, std::optional<ApiError>& error,
                Request& request) {
  const JsonValue* tools = fields.array("tools", limits.max_tools);
  for (std::size_t i = 0; tools != nullptr && i < tools->items.size(); ++i) {
    Fields tool(tools->items[i], fmt::format("tools[{}]", i), error);
    const std::string type = tool.string("type", "custom");
    if (type != "custom") continue;  // a tool that runs on somebody else's server, or has no schema here
    const std::string name = tool.string("name");
    if (name.empty() || name.size() > 256) tool.fail("name", "must have 1 to 256 bytes");
    const JsonValue* schema = tool.object("input_schema");
    if (schema == nullptr) tool.fail("input_schema", "is missing");
    request.declared.push_back({name, name, "", false, tool.boolean("strict", false)});
    request.tools.items.push_back(function_tool(name, tool.get("description"), schema));
  }
  const JsonValue* choice = fields.object("tool_choice");
  if (choice == nullptr) return;
  Fields inner(*choice, "tool_choice", error);
  const std::string type = inner.string("type");
  using Kind = ToolChoice::Kind;
  if (type == "any") {
    request.tool_choice.kind = Kind::required;
  } else if (type == "tool") {
    request.tool_choice = {Kind::named, inner.string("name")};
  } else if (type == "none") {
    request.tool_choice.kind = Kind::none;
  } else if (type != "auto") {
    inner.fail("type", "must be auto, any, tool or none");
  }
  request.parallel_tools = !inner.boolean("disable_parallel_tool_use", false);
}

}  // namespace

ApiResult<Request> read_messages_request(const JsonValue& body, const RequestLimits& limits, bool counting) {
  std::optional<ApiError> error;
  Request request;
  request.api = Api::messages;
  request.tools.kind = JsonValue::Kind::array;
  Fields fields(body, "", error);
  request.model = fields.string("model");
  if (request.model.empty()) fields.fail("model", "is missing");
  read_sampling(fields, limits, request);
  read_stops(fields, "stop_sequences", limits, request);
  request.max_tokens = fields.integer("max_tokens", 0, 1, limits.max_tokens);
  if (request.max_tokens == 0 && !counting) fields.fail("max_tokens", "is missing");
  // The system text is a string or blocks, of which one may be a header of the client's own.
  std::string system;
  const JsonValue* blocks = fields.get("system");
  if (blocks != nullptr && blocks->is_array()) {
    for (const JsonValue& block : blocks->items) {
      const JsonValue* text = block.find("text");
      if (text == nullptr || !text->is_string()) {
        fields.fail("system", "must be a string or an array of text blocks");
      } else if (!is_billing_header(text->text)) {
        if (!system.empty()) system += "\n\n";
        system += text->text;
      }
    }
  } else {
    system = fields.string("system");
  }
  if (!system.empty()) {
    ChatMessage message;
    message.role = "system";
    message.content = without_volatile_parts(std::move(system));
    request.messages.push_back(std::move(message));
    request.turn_ids.emplace_back();
  }
  if (const JsonValue* messages = fields.array("messages", limits.max_messages); messages != nullptr) {
    MessageReader reader(error, request);
    for (std::size_t i = 0; i < messages->items.size(); ++i)
      reader.read(messages->items[i], fmt::format("messages[{}]", i));
  } else {
    fields.fail("messages", "is missing");
  }
  read_tools(fields, limits, error, request);
  read_thinking(fields, request);
  if (const JsonValue* output = fields.object("output_config")) {
    Fields inner(*output, "output_config", error);
    const bool thinking = request.thinking;
    if (const std::string effort = inner.string("effort"); !effort.empty() && !read_effort(effort, request))
      inner.fail("effort", "must be low, medium, high, xhigh or max");
    request.thinking = thinking;
    read_format(inner, "format", request);
  }
  if (fields.get("output_format") != nullptr) read_format(fields, "output_format", request);
  if (const JsonValue* metadata = fields.object("metadata"))
    request.user = Fields(*metadata, "metadata", error).string("user_id");
  settle_roles(error, request);
  // The beginning of the answer, put into the model's mouth.
  if (!error) request.continues_last = request.messages.back().role == "assistant";
  if (error) return tl::unexpected(*error);
  return request;
}

}  // namespace hadal::serve
