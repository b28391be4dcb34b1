#include "serve/request_parts.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

namespace hadal::serve {

void read_stops(Fields& fields, std::string_view key, const RequestLimits& limits, Request& request) {
  const JsonValue* value = fields.get(key);
  if (value == nullptr) return;
  const auto add = [&](const JsonValue& stop) {
    if (!stop.is_string()) return fields.fail(key, "must be a string or an array of strings");
    if (stop.text.size() > limits.max_stop_bytes)
      return fields.fail(key, fmt::format("has a string of more than {} bytes", limits.max_stop_bytes));
    if (!stop.text.empty()) request.stop.push_back(stop.text);
  };
  if (!value->is_array()) return add(*value);
  if (const JsonValue* stops = fields.array(key, limits.max_stops)) {
    for (const JsonValue& stop : stops->items) add(stop);
  }
}

void read_sampling(Fields& fields, const RequestLimits& limits, Request& request) {
  SamplingOptions& sampling = request.sampling;
  sampling.temperature = fields.number("temperature", 1, 0, 2);
  sampling.top_p = fields.number("top_p", 1, 0, 1);
  if (sampling.top_p == 0) sampling.top_k = 1, sampling.top_p = 1;  // the smallest set that is not empty
  sampling.min_p = fields.number("min_p", 0, 0, 1);
  if (const std::int64_t k = fields.integer("top_k", 0, -1, 1 << 30); k > 0) sampling.top_k = k;
  request.presence_penalty = fields.number("presence_penalty", 0, -2, 2);
  request.frequency_penalty = fields.number("frequency_penalty", 0, -2, 2);
  constexpr std::int64_t kMostSeed = std::int64_t{1} << 53;
  request.has_seed = fields.get("seed") != nullptr;
  sampling.seed = static_cast<std::uint64_t>(fields.integer("seed", 0, -kMostSeed, kMostSeed));
  request.stream = fields.boolean("stream", false);
  request.answers = fields.integer("n", 1, 1, limits.max_choices);
  if (request.answers > 1 && request.api != Api::chat && request.api != Api::completions)
    fields.fail("n", "must be 1: this API has one answer to a request");
  if (const JsonValue* bias = fields.object("logit_bias")) {
    if (bias->members.size() > limits.max_biases)
      fields.fail("logit_bias", fmt::format("has more than {} members", limits.max_biases));
    for (const JsonMember& member : bias->members) {
      std::int32_t token = 0;
      const char* end = member.key.data() + member.key.size();
      const auto read = std::from_chars(member.key.data(), end, token);
      const auto amount = to_number(member.value);
      if (read.ec != std::errc() || read.ptr != end || token < 0 || !amount || *amount < -100 ||
          *amount > 100) {
        fields.fail("logit_bias", "must map token ids to numbers from -100 to 100");
        break;
      }
      request.logit_bias.emplace_back(token, static_cast<float>(*amount));
    }
  }
  for (const std::string_view key : {"user_id", "user", "safety_identifier"}) {
    const JsonValue* user = fields.get(key);
    if (request.user.empty() && user != nullptr && user->is_string()) request.user = user->text;
  }
}

bool read_effort(std::string_view level, Request& request) {
  if (level == "none") {
    request.thinking = false;
  } else if (level == "minimal" || level == "low") {
    request.effort = "low";
  } else if (level == "medium" || level == "high" || level == "xhigh") {
    request.effort = "high";
  } else if (level == "max" || level == "ultra") {
    request.effort = "max";
  } else {
    return false;
  }
  return true;
}

void read_thinking(Fields& fields, Request& request) {
  const JsonValue* thinking = fields.object("thinking");
  if (thinking == nullptr) return;
  const JsonValue* type = thinking->find("type");
  const std::string_view name = type != nullptr && type->is_string() ? std::string_view(type->text) : "";
  if (name == "disabled") {
    request.thinking = false;
  } else if (name == "enabled" || name == "adaptive" || name == "auto") {
    request.thinking = true;
  } else {
    fields.fail("thinking.type", "must be enabled, disabled or adaptive");
  }
  const JsonValue* display = thinking->find("display");
  if (display != nullptr && display->text == "omitted") request.show_thinking = false;
}

void read_format(Fields& fields, std::string_view key, Request& request) {
  const JsonValue* format = fields.object(key);
  if (format == nullptr) return;
  const JsonValue* type = format->find("type");
  const std::string_view name = type != nullptr && type->is_string() ? std::string_view(type->text) : "";
  if (name == "json_object") {
    request.json_object = true;
  } else if (name == "json_schema") {
    const JsonValue* wrapper = format->find("json_schema");
    const JsonValue& holder = wrapper != nullptr && wrapper->is_object() ? *wrapper : *format;
    const JsonValue* schema = holder.find("schema");
    if (schema == nullptr || !schema->is_object())
      return fields.fail(fmt::format("{}.schema", key), "must be an object: the JSON schema");
    const JsonValue* strict = holder.find("strict");
    request.json_schema = *schema;
    // Anthropic's has no such flag and is always meant.
    request.strict_schema = request.api == Api::messages || (strict != nullptr && strict->boolean);
  } else if (name != "text") {
    fields.fail(key, "must have a type: text, json_object or json_schema");
  }
}

std::string unsupported_part(std::string_view type) {
  const bool image = type == "image" || type == "image_url" || type == "input_image";
  return fmt::format("[Unsupported {}]", image ? "Image" : type.substr(0, 64));
}

std::string text_of_content(Fields& fields, std::string_view key) {
  const JsonValue* content = fields.get(key);
  if (content == nullptr) return {};
  if (content->is_string()) return content->text;
  if (!content->is_array()) {
    fields.fail(key, "must be a string or an array of parts");
    return {};
  }
  std::string text;
  for (const JsonValue& part : content->items) {
    if (&part != content->items.data()) text += "\n\n";
    const JsonValue* type = part.find("type");
    const std::string_view name = type != nullptr && type->is_string() ? std::string_view(type->text) : "";
    const JsonValue* value = part.find(name == "refusal" ? "refusal" : "text");
    if (part.is_string()) {
      text += part.text;
    } else if (value != nullptr && value->is_string()) {
      text += value->text;
    } else if (!part.is_object() || name.empty() || name.ends_with("text")) {
      fields.fail(key, "has a part that is neither text nor of another known type");
    } else {
      text += unsupported_part(name);
    }
  }
  return text;
}

JsonValue json_string(std::string text) {
  JsonValue value;
  value.kind = JsonValue::Kind::string;
  value.text = std::move(text);
  return value;
}

JsonValue json_object(std::vector<JsonMember> members) {
  JsonValue value;
  value.kind = JsonValue::Kind::object;
  value.members = std::move(members);
  return value;
}

JsonValue function_tool(const std::string& name, const JsonValue* description, const JsonValue* parameters) {
  JsonValue function = json_object({{"name", json_string(name)},
                                    {"description", description == nullptr ? json_string("") : *description},
                                    {"parameters", parameters == nullptr ? json_object({}) : *parameters}});
  return json_object({{"type", json_string("function")}, {"function", std::move(function)}});
}

JsonValue custom_tool(const std::string& name, const std::string& description) {
  JsonValue required;
  required.kind = JsonValue::Kind::array;
  required.items.push_back(json_string("input"));
  JsonValue input = json_object({{"type", json_string("string")}});
  JsonValue parameters = json_object({{"type", json_string("object")},
                                      {"properties", json_object({{"input", std::move(input)}})},
                                      {"required", std::move(required)}});
  const JsonValue described = json_string(description);
  return function_tool(name, &described, &parameters);
}

bool is_billing_header(std::string_view text) {
  return text.starts_with("x-anthropic-");
}

std::string without_volatile_parts(std::string text) {
  constexpr std::string_view kOpen = "<total_tokens>", kClose = "</total_tokens>";
  for (std::size_t at = text.find(kOpen); at != std::string::npos; at = text.find(kOpen, at)) {
    const std::size_t end = text.find(kClose, at);
    // A count and a few words; anything longer was written by somebody.
    if (end == std::string::npos || end - at > 64) break;
    std::size_t begin = at;
    while (begin > 0 && text[begin - 1] == '\n') --begin;
    text.erase(begin, end + kClose.size() - begin);
    at = begin;
  }
  return text;
}

void settle_roles(std::optional<ApiError>& error, Request& request) {
  if (error) return;
  std::vector<ChatMessage> settled;
  std::vector<std::string> ids;
  request.turn_ids.resize(request.messages.size());
  for (std::size_t i = 0; i < request.messages.size(); ++i) {
    ChatMessage& message = request.messages[i];
    if (message.role == "latest_reminder") {
      // The model knows it before the user's turn, not behind it.
      std::size_t at = settled.size();
      while (at > 0 && (settled[at - 1].role == "user" || settled[at - 1].role == "tool")) --at;
      settled.insert(settled.begin() + static_cast<std::ptrdiff_t>(at), std::move(message));
      ids.insert(ids.begin() + static_cast<std::ptrdiff_t>(at), std::move(request.turn_ids[i]));
      continue;
    }
    if (message.role == "system") {
      if (settled.size() == 1 && settled.front().role == "system") {
        settled.front().content += "\n\n" + message.content;
        continue;
      }
      if (!settled.empty()) message.role = "user";
    }
    settled.push_back(std::move(message));
    ids.push_back(std::move(request.turn_ids[i]));
  }
  request.messages = std::move(settled);
  request.turn_ids = std::move(ids);
  const bool has_turn = std::any_of(request.messages.begin(), request.messages.end(),
                                    [](const ChatMessage& m) { return m.role != "system"; });
  if (!has_turn) {
    error = invalid("messages must have at least one that is not the system's", "messages");
    return;
  }
  bool has_calls = false;
  for (std::size_t i = 0; i < request.messages.size(); ++i) {
    const ChatMessage& message = request.messages[i];
    has_calls = has_calls || !message.tool_calls.empty();
    if (message.role == "tool" && !has_calls) {
      error = invalid("a tool's result must answer a call in an earlier message; send the whole history",
                      "messages");
      return;
    }
  }
}

}  // namespace hadal::serve
