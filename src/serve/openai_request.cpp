// Requests of the OpenAI APIs chat completions and completions, with DeepSeek's extensions.
#include <span>

#include <fmt/format.h>

#include "serve/request_parts.h"

namespace hadal::serve {
namespace {

void read_logprobs(Fields& fields, Request& request) {
  request.logprobs = fields.boolean("logprobs", false);
  request.top_logprobs = fields.integer("top_logprobs", 0, 0, 20);
  if (request.top_logprobs > 0 && !request.logprobs) fields.fail("top_logprobs", "needs logprobs to be true");
}

void read_max_tokens(Fields& fields, const RequestLimits& limits, Request& request) {
  request.max_tokens = fields.integer("max_tokens", 0, 1, limits.max_tokens);
  request.max_tokens = fields.integer("max_completion_tokens", request.max_tokens, 1, limits.max_tokens);
}

void read_stream_options(Fields& fields, std::optional<ApiError>& error, Request& request) {
  if (const JsonValue* options = fields.object("stream_options"))
    request.include_usage = Fields(*options, "stream_options", error).boolean("include_usage", false);
}

ToolCall read_call(const JsonValue& json, const std::string& path, std::optional<ApiError>& error) {
  Fields fields(json, path, error);
  ToolCall call;
  call.id = fields.string("id");
  const JsonValue* custom = fields.object("custom");
  const JsonValue* function = custom != nullptr ? custom : fields.object("function");
  if (function == nullptr) {
    fields.fail("function", "is missing");
    return call;
  }
  Fields inner(*function, path + ".function", error);
  call.name = inner.string("name");
  if (call.name.empty()) inner.fail("name", "is missing");
  if (custom != nullptr) {
    call.arguments = to_python_json(json_object({{"input", json_string(inner.string("input"))}}));
    return call;
  }
  const JsonValue* arguments = inner.get("arguments");
  if (arguments == nullptr) {
    call.arguments = "{}";
  } else if (arguments->is_string()) {
    call.arguments = arguments->text.empty() ? "{}" : arguments->text;
  } else {
    call.arguments = to_python_json(*arguments);
  }
  return call;
}

void read_message(const JsonValue& json, const std::string& path, std::optional<ApiError>& error,
                  Request& request) {
  Fields fields(json, path, error);
  ChatMessage message;
  message.position = request.messages.size();
  message.role = fields.string("role");
  message.content = text_of_content(fields, "content");
  if (message.role == "developer") message.role = "system";
  if (message.role == "function") message.role = "tool";
  if (message.role == "system") {
    message.content = without_volatile_parts(std::move(message.content));
    if (is_billing_header(message.content)) return;
  } else if (message.role == "assistant") {
    message.reasoning_content = fields.string("reasoning_content");
    if (message.reasoning_content.empty()) message.reasoning_content = fields.string("reasoning");
    if (const JsonValue* calls = fields.array("tool_calls", 1024)) {
      for (const JsonValue& call : calls->items)
        message.tool_calls.push_back(read_call(call, fmt::format("{}.tool_calls", path), error));
    }
    if (fields.boolean("prefix", false)) request.continues_last = true;
  } else if (message.role == "tool") {
    message.tool_call_id = fields.string("tool_call_id");
  } else if (message.role != "user" && message.role != "latest_reminder") {
    fields.fail("role", "must be system, developer, user, assistant or tool");
  }
  request.messages.push_back(std::move(message));
}

void read_tool(const JsonValue& json, const std::string& path, std::optional<ApiError>& error,
               Request& request) {
  Fields fields(json, path, error);
  const std::string type = fields.string("type", "function");
  if (type == "custom") {
    const JsonValue* custom = fields.object("custom");
    if (custom == nullptr) return fields.fail("custom", "is missing");
    Fields inner(*custom, path + ".custom", error);
    const std::string name = inner.string("name");
    request.declared.push_back({name, name, "", true, false});
    request.tools.items.push_back(custom_tool(name, inner.string("description")));
    return;
  }
  if (type != "function") return;  // a tool of somebody else's server
  const JsonValue* function = fields.object("function");
  if (function == nullptr) return fields.fail("function", "is missing");
  Fields inner(*function, path + ".function", error);
  const std::string name = inner.string("name");
  if (name.empty() || name.size() > 256) inner.fail("name", "must have 1 to 256 bytes");
  request.declared.push_back({name, name, "", false, inner.boolean("strict", false)});
  request.tools.items.push_back(function_tool(name, inner.get("description"), inner.object("parameters")));
}

void read_tool_choice(Fields& fields, std::optional<ApiError>& error, Request& request) {
  const JsonValue* choice = fields.get("tool_choice");
  if (choice == nullptr) return;
  using Kind = ToolChoice::Kind;
  if (choice->is_string()) {
    if (choice->text == "none") {
      request.tool_choice.kind = Kind::none;
    } else if (choice->text == "required" || choice->text == "any") {
      request.tool_choice.kind = Kind::required;
    } else if (choice->text != "auto") {
      fields.fail("tool_choice", "must be none, auto, required or name a function");
    }
    return;
  }
  for (const std::string_view key : {"function", "custom"}) {
    const JsonValue* named = choice->find(key);
    if (named == nullptr || !named->is_object()) continue;
    request.tool_choice = {Kind::named, Fields(*named, "tool_choice", error).string("name")};
    return;
  }
  const JsonValue* type = choice->find("type");
  if (type == nullptr || type->text != "allowed_tools") fields.fail("tool_choice", "must name a function");
}

std::optional<Request::Text> read_prompt(const JsonValue& json) {
  if (json.is_string()) return Request::Text{json.text, std::nullopt};
  if (!json.is_array()) return std::nullopt;
  std::vector<std::int32_t> tokens;
  for (const JsonValue& item : json.items) {
    const auto token = to_integer(item);
    if (!token || *token < 0 || *token > INT32_MAX) return std::nullopt;
    tokens.push_back(static_cast<std::int32_t>(*token));
  }
  return Request::Text{"", std::move(tokens)};
}

// A string, token ids, or several of either.
void read_prompts(Fields& fields, const RequestLimits& limits, Request& request) {
  const JsonValue* prompt = fields.get("prompt");
  if (prompt == nullptr) {
    request.prompts.push_back({"", std::vector<std::int32_t>()});  // from nothing
    return;
  }
  const bool several =
      prompt->is_array() && !prompt->items.empty() && prompt->items.front().kind != JsonValue::Kind::number;
  const std::span<const JsonValue> all = several ? std::span(prompt->items) : std::span(prompt, 1);
  if (static_cast<std::int64_t>(all.size()) > limits.max_choices / request.answers) {
    return fields.fail(
        "prompt", fmt::format("has {} prompts with {} answers to each; {} answers are the limit", all.size(),
                              request.answers, limits.max_choices));
  }
  for (const JsonValue& one : all) {
    auto read = read_prompt(one);
    if (!read)
      return fields.fail("prompt", "must be a string, an array of token ids, or an array of several such");
    request.prompts.push_back(std::move(*read));
  }
}

}  // namespace

ApiResult<Request> read_chat_request(const JsonValue& body, const RequestLimits& limits) {
  std::optional<ApiError> error;
  Request request;
  request.api = Api::chat;
  request.tools.kind = JsonValue::Kind::array;
  Fields fields(body, "", error);
  request.model = fields.string("model");
  read_sampling(fields, limits, request);
  read_stops(fields, "stop", limits, request);
  read_max_tokens(fields, limits, request);
  read_logprobs(fields, request);
  read_stream_options(fields, error, request);
  if (const JsonValue* messages = fields.array("messages", limits.max_messages); messages != nullptr) {
    for (std::size_t i = 0; i < messages->items.size(); ++i)
      read_message(messages->items[i], fmt::format("messages[{}]", i), error, request);
  } else {
    fields.fail("messages", "is missing");
  }
  for (const std::string_view key : {"tools", "functions"}) {  // the latter is how it began
    const JsonValue* tools = fields.array(key, limits.max_tools);
    for (std::size_t i = 0; tools != nullptr && i < tools->items.size(); ++i) {
      const JsonValue& tool = tools->items[i];
      read_tool(key == "tools" ? tool : json_object({{"type", json_string("function")}, {"function", tool}}),
                fmt::format("{}[{}]", key, i), error, request);
    }
  }
  read_tool_choice(fields, error, request);
  request.parallel_tools = fields.boolean("parallel_tool_calls", true);
  read_thinking(fields, request);
  if (const JsonValue* effort = fields.get("reasoning_effort");
      effort != nullptr && fields.get("thinking") == nullptr) {
    if (!effort->is_string() || !read_effort(effort->text, request))
      fields.fail("reasoning_effort", "must be none, minimal, low, medium, high, xhigh or max");
  } else if (effort != nullptr && effort->is_string() && effort->text != "none") {
    if (!read_effort(effort->text, request))
      fields.fail("reasoning_effort", "must be none, minimal, low, medium, high, xhigh or max");
  }
  // How vLLM's and llama.cpp's clients say it.
  if (const JsonValue* arguments = fields.object("chat_template_kwargs")) {
    for (const std::string_view key : {"thinking", "enable_thinking"}) {
      const JsonValue* value = arguments->find(key);
      if (value != nullptr && value->kind == JsonValue::Kind::boolean) request.thinking = value->boolean;
    }
  }
  read_format(fields, "response_format", request);
  settle_roles(error, request);
  if (!error && request.continues_last && request.messages.back().role != "assistant")
    error = invalid("a message with prefix must be the last one, and the assistant's", "messages");
  if (error) return tl::unexpected(*error);
  return request;
}

ApiResult<Request> read_completions_request(const JsonValue& body, const RequestLimits& limits) {
  std::optional<ApiError> error;
  Request request;
  request.api = Api::completions;
  request.thinking = false;
  request.max_tokens = 16;  // what this API always had
  Fields fields(body, "", error);
  request.model = fields.string("model");
  read_sampling(fields, limits, request);
  read_stops(fields, "stop", limits, request);
  read_stream_options(fields, error, request);
  request.max_tokens = fields.integer("max_tokens", 16, 0, limits.max_tokens);
  request.echo = fields.boolean("echo", false);
  if (fields.integer("best_of", request.answers, 1, limits.max_choices) != request.answers)
    fields.fail("best_of", "must be what n is: every answer is given back");
  if (const JsonValue* logprobs = fields.get("logprobs"); logprobs != nullptr) {
    request.logprobs = true;
    if (logprobs->kind == JsonValue::Kind::boolean) {
      request.logprobs = logprobs->boolean;
    } else {
      request.top_logprobs = fields.integer("logprobs", 0, 0, 20);
    }
  }
  if (fields.get("suffix") != nullptr) request.suffix = fields.string("suffix");
  read_prompts(fields, limits, request);
  if (error) return tl::unexpected(*error);
  return request;
}

}  // namespace hadal::serve
