// What a client asked for, whichever API it spoke: the four readers make this of their JSON, and nobody
// behind them sees the difference (but the writers of the answers).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <hadal/engine.h>

#include "serve/api_error.h"
#include "text/chat_message.h"
#include "text/json_value.h"

namespace hadal::serve {

struct ToolChoice {
  enum class Kind : std::uint8_t { automatic, none, required, named };
  Kind kind = Kind::automatic;
  std::string name;  // of `named`
};

// A tool as it was declared, beyond what the prompt shows.
struct DeclaredTool {
  std::string name;        // as the model knows it
  std::string wire_name;   // as the client knows it
  std::string name_space;  // Responses: of a namespace tool
  bool custom = false;     // takes one text, not JSON; the model sees a function with one parameter, `input`
  bool strict = false;
};

struct Request {
  Api api = Api::chat;
  std::string model;  // as the client called it
  bool stream = false;
  bool include_usage = false;  // chat, completions: a last chunk with the usage

  std::vector<ChatMessage> messages;
  std::vector<std::string> turn_ids;  // per message: the id that the client got with this turn, or ""
  bool continues_last = false;        // the last message is the beginning of the answer
  JsonValue tools;                    // an OpenAI tools array; tools of other shapes were brought to it
  std::vector<DeclaredTool> declared;
  ToolChoice tool_choice;
  bool parallel_tools = true;

  bool thinking = true;
  std::string effort = "high";  // low, high or max
  bool show_thinking = true;    // false: the client wants none of it

  bool json_object = false;              // the answer is to be a JSON object
  std::optional<JsonValue> json_schema;  // or to follow this
  bool strict_schema = false;

  std::int64_t max_tokens = 0;  // 0: as many as is usual
  SamplingOptions sampling;
  bool has_seed = false;
  double presence_penalty = 0, frequency_penalty = 0;
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::vector<std::string> stop;
  bool logprobs = false;
  std::int64_t top_logprobs = 0;
  std::string user;  // whose cache it is within the API key's

  std::int64_t answers = 1;  // chat, completions: to each prompt

  // completions:
  struct Text {
    std::string text;
    std::optional<std::vector<std::int32_t>> tokens;  // instead
  };
  std::vector<Text> prompts;
  std::optional<std::string> suffix;
  bool echo = false;

  // responses, repeated in the answer:
  Json echoed = Json::object();

  // Choices are numbered by prompt, then by answer.
  std::size_t choices() const {
    return std::max<std::size_t>(prompts.size(), 1) * static_cast<std::size_t>(answers);
  }
  const Text& prompt_of(std::size_t choice) const {
    return prompts[choice / static_cast<std::size_t>(answers)];
  }
  const DeclaredTool* find_tool(std::string_view name) const {
    for (const DeclaredTool& tool : declared)
      if (tool.name == name) return &tool;
    return nullptr;
  }
};

struct RequestLimits {
  std::size_t max_messages = 100'000;
  std::size_t max_tools = 1024;
  std::size_t max_stops = 64;
  std::size_t max_stop_bytes = 1024;
  std::size_t max_biases = 1024;
  std::int64_t max_choices = 128;
  std::int64_t max_tokens = 1 << 22;  // that may be asked for
};

ApiResult<Request> read_chat_request(const JsonValue& body, const RequestLimits& limits);
ApiResult<Request> read_completions_request(const JsonValue& body, const RequestLimits& limits);
ApiResult<Request> read_responses_request(const JsonValue& body, const RequestLimits& limits);
// `counting`: for count_tokens, where max_tokens may be missing.
ApiResult<Request> read_messages_request(const JsonValue& body, const RequestLimits& limits,
                                         bool counting = false);

}  // namespace hadal::serve
