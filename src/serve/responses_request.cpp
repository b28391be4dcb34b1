// Requests of the OpenAI Responses API: stateless, as DeepSeek serves it.
#include <fmt/format.h>

#include "serve/request_parts.h"

namespace hadal::serve {
namespace {

// Items of one assistant turn (reasoning, message, calls) come one after another and are one message here.
class ItemReader {
 public:
  ItemReader(std::optional<ApiError>& error, Request& request) : error_(error), request_(request) {}

  void read(const JsonValue& item, const std::string& path) {
    Fields fields(item, path, error_);
    const std::string type = fields.string("type", item.find("role") != nullptr ? "message" : "");
    if (type == "message") {
      read_message(fields);
    } else if (type == "reasoning") {
      ChatMessage& message = assistant(fields.string("id"));
      message.reasoning_content += reasoning_text(fields);
    } else if (type == "function_call" || type == "custom_tool_call") {
      const bool custom = type == "custom_tool_call";
      ToolCall call;
      call.id = fields.string("call_id");
      call.name = fields.string("name");
      if (call.name.empty()) fields.fail("name", "is missing");
      if (const std::string space = fields.string("namespace"); !space.empty())
        call.name = space + "__" + call.name;
      if (custom) {
        call.arguments = to_python_json(json_object({{"input", json_string(fields.string("input"))}}));
      } else {
        call.arguments = fields.string("arguments");
      }
      if (call.arguments.empty()) call.arguments = "{}";
      assistant(call.id).tool_calls.push_back(std::move(call));
    } else if (type == "function_call_output" || type == "custom_tool_call_output") {
      ChatMessage& message = add("tool", text_of_content(fields, "output"));
      message.tool_call_id = fields.string("call_id");
    } else if (type == "item_reference") {
      fields.fail("type", "is item_reference, but nothing is stored here: send the item itself");
    } else if (type.empty()) {
      fields.fail("type", "is missing");
    }  // calls of servers' own tools and whatever else there will be: nothing that the model could see
  }

 private:
  ChatMessage& add(std::string role, std::string content) {
    ChatMessage& message = request_.messages.emplace_back();
    request_.turn_ids.emplace_back();
    message.role = std::move(role);
    message.content = std::move(content);
    message.position = request_.messages.size() - 1;
    return message;
  }

  ChatMessage& assistant(const std::string& id) {
    if (request_.messages.empty() || request_.messages.back().role != "assistant") add("assistant", "");
    if (request_.turn_ids.back().empty()) request_.turn_ids.back() = id;
    return request_.messages.back();
  }

  static std::string reasoning_text(Fields& fields) {
    for (const std::string_view key : {"content", "summary"}) {
      const JsonValue* parts = fields.array(key, 4096);
      if (parts == nullptr || parts->items.empty()) continue;
      std::string text;
      for (const JsonValue& part : parts->items) {
        if (const JsonValue* value = part.find("text"); value != nullptr && value->is_string())
          text += value->text;
      }
      return text;
    }
    return {};
  }

  void read_message(Fields& fields) {
    const std::string role = fields.string("role", "user");
    const std::string text = text_of_content(fields, "content");
    if (role == "assistant") {
      ChatMessage& message = assistant(fields.string("id"));
      if (!message.content.empty()) message.content += "\n\n";
      message.content += text;
      return;
    }
    const bool system = role == "system" || role == "developer";
    if (!system && role != "user") fields.fail("role", "must be user, assistant, system or developer");
    add(system ? "system" : role, system ? without_volatile_parts(text) : text);
  }

  std::optional<ApiError>& error_;
  Request& request_;
};

void read_tool(const JsonValue& json, const std::string& path, const std::string& space,
               std::optional<ApiError>& error, Request& request) {
  Fields fields(json, path, error);
  const std::string type = fields.string("type");
  const std::string wire_name = fields.string("name");
  if (type == "namespace") {
    const JsonValue* tools = fields.array("tools", 1024);
    for (std::size_t i = 0; tools != nullptr && i < tools->items.size() && space.empty(); ++i)
      read_tool(tools->items[i], fmt::format("{}.tools[{}]", path, i), wire_name, error, request);
    return;
  }
  if (type != "function" && type != "custom") return;  // somebody else's server has it
  if (wire_name.empty() || wire_name.size() > 256) fields.fail("name", "must have 1 to 256 bytes");
  const std::string name = space.empty() ? wire_name : space + "__" + wire_name;
  const bool custom = type == "custom";
  request.declared.push_back({name, wire_name, space, custom, fields.boolean("strict", false)});
  if (custom) {
    request.tools.items.push_back(custom_tool(name, fields.string("description")));
    return;
  }
  request.tools.items.push_back(function_tool(name, fields.get("description"), fields.object("parameters")));
}

void read_choice_of_tool(Fields& fields, std::optional<ApiError>& error, Request& request) {
  const JsonValue* choice = fields.get("tool_choice");
  if (choice == nullptr) return;
  using Kind = ToolChoice::Kind;
  if (choice->is_object()) {
    Fields inner(*choice, "tool_choice", error);
    const std::string type = inner.string("type");
    if (type == "function" || type == "custom") {
      request.tool_choice = {Kind::named, inner.string("name")};
    } else if (type == "allowed_tools" && inner.string("mode") == "required") {
      request.tool_choice.kind = Kind::required;
    }
  } else if (choice->text == "none") {
    request.tool_choice.kind = Kind::none;
  } else if (choice->text == "required") {
    request.tool_choice.kind = Kind::required;
  } else if (choice->text != "auto") {
    fields.fail("tool_choice", "must be none, auto, required or name a function");
  }
}

// The settings that an answer repeats.
Json echo_of(const JsonValue& body) {
  Json echoed = Json::object();
  const auto copy = [&](std::string_view key, Json otherwise) {
    const JsonValue* value = body.find(key);
    echoed[std::string(key)] = value == nullptr || value->is_null() ? std::move(otherwise) : to_json(*value);
  };
  copy("instructions", nullptr);
  copy("max_output_tokens", nullptr);
  copy("metadata", Json::object());
  copy("parallel_tool_calls", true);
  copy("temperature", 1.0);
  copy("top_p", 1.0);
  copy("tool_choice", "auto");
  copy("tools", Json::array());
  copy("text", {{"format", {{"type", "text"}}}});
  copy("reasoning", {{"effort", nullptr}, {"summary", nullptr}});
  copy("truncation", "disabled");
  copy("user", nullptr);
  echoed["previous_response_id"] = nullptr;
  echoed["store"] = false;
  return echoed;
}

}  // namespace

ApiResult<Request> read_responses_request(const JsonValue& body, const RequestLimits& limits) {
  std::optional<ApiError> error;
  Request request;
  request.api = Api::responses;
  request.tools.kind = JsonValue::Kind::array;
  Fields fields(body, "", error);
  request.model = fields.string("model");
  read_sampling(fields, limits, request);
  read_stops(fields, "stop", limits, request);
  request.max_tokens = fields.integer("max_output_tokens", 0, 1, limits.max_tokens);
  request.top_logprobs = fields.integer("top_logprobs", 0, 0, 20);
  if (!fields.string("previous_response_id").empty() || fields.get("conversation") != nullptr)
    fields.fail("previous_response_id",
                "cannot be used: nothing is stored here; send the whole history as input");
  if (fields.boolean("background", false)) fields.fail("background", "must be false: nothing is stored here");
  if (const JsonValue* include = fields.array("include", 64)) {
    for (const JsonValue& item : include->items) {
      if (item.text == "message.output_text.logprobs") request.logprobs = true;
    }
  }
  if (const std::string instructions = fields.string("instructions"); !instructions.empty()) {
    ChatMessage& system = request.messages.emplace_back();
    request.turn_ids.emplace_back();
    system.role = "system";
    system.content = without_volatile_parts(instructions);
  }
  const JsonValue* input = fields.get("input");
  if (input != nullptr && input->is_array()) {
    if (input->items.size() > limits.max_messages) fields.fail("input", "has too many items");
    ItemReader reader(error, request);
    for (std::size_t i = 0; i < input->items.size(); ++i)
      reader.read(input->items[i], fmt::format("input[{}]", i));
  } else if (input != nullptr && input->is_string()) {
    ChatMessage& user = request.messages.emplace_back();
    request.turn_ids.emplace_back();
    user.role = "user";
    user.content = input->text;
  } else {
    fields.fail("input", "must be a string or an array of items");
  }
  const JsonValue* tools = fields.array("tools", limits.max_tools);
  for (std::size_t i = 0; tools != nullptr && i < tools->items.size(); ++i)
    read_tool(tools->items[i], fmt::format("tools[{}]", i), "", error, request);
  read_choice_of_tool(fields, error, request);
  request.parallel_tools = fields.boolean("parallel_tool_calls", true);
  if (const JsonValue* reasoning = fields.object("reasoning")) {
    Fields inner(*reasoning, "reasoning", error);
    if (const std::string effort = inner.string("effort"); !effort.empty() && !read_effort(effort, request))
      inner.fail("effort", "must be none, minimal, low, medium, high, xhigh or max");
  }
  if (const JsonValue* text = fields.object("text")) {
    Fields inner(*text, "text", error);
    read_format(inner, "format", request);
  }
  settle_roles(error, request);
  if (error) return tl::unexpected(*error);
  request.echoed = echo_of(body);
  return request;
}

}  // namespace hadal::serve
