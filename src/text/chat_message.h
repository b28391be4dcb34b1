// One message of a conversation, in the fields that the chat encoding uses, and its reading from the JSON
// shape of the OpenAI API with the extensions of DeepSeek's encoder (tools, response_format, task, wo_eos and
// the roles developer and latest_reminder).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "text/json_value.h"

namespace hadal {

// A call that the assistant made earlier.
struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;          // JSON, meant to be an object
  bool arguments_is_text = true;  // false: the client sent a JSON value instead of text; this is its JSON
};

struct ChatMessage {
  std::string role;  // system, developer, user, assistant, tool, latest_reminder; checked when rendered
  std::string content;
  std::string reasoning_content;     // assistant
  std::vector<ToolCall> tool_calls;  // assistant
  std::string tool_call_id;          // tool
  std::vector<std::string> tools;    // the JSON of each function, as to_python_json writes it
  std::string response_format;       // JSON; empty: none
  bool json_object = false;          // asks for a JSON object, of any schema
  std::optional<std::string> task;   // a quick instruction
  bool wo_eos = false;               // assistant: the turn goes on, no EOS
  // assistant: the very tokens that the model wrote for this turn, if they are known. They stand in place of
  // the fields above where the turn begins as it did then: after <think> (sampled_thinking) or after
  // </think>.
  std::vector<std::int32_t> sampled;
  bool sampled_thinking = false;
  std::size_t position = 0;  // index in the request, for messages of errors
};

// From a JSON array of messages. What it does with each field that the official encoder cannot take is in
// docs/chat.md. Error: invalid_argument, with the index of the message.
Result<std::vector<ChatMessage>> messages_from_json(const JsonValue& json);

// The `function` of each tool of an OpenAI tools array, as the prompt shows it: one JSON text per tool.
Result<std::vector<std::string>> tools_from_json(const JsonValue& json);

// Declares tools where the encoder expects them: on the first system message, which is made if there is none.
void declare_tools(std::vector<ChatMessage>& messages, std::vector<std::string> tools);

}  // namespace hadal
