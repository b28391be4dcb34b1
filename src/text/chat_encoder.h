// A conversation as the prompt that DeepSeek-V4 was trained on, byte for byte what the official encoder of
// the release writes (docs/chat.md), with the special tokens that the template writes told apart from text
// that only looks like one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "text/chat_dialect.h"
#include "text/chat_message.h"
#include "text/json_value.h"

namespace hadal {

// A stretch of the prompt. With `control` set it is exactly one special token, written by the template.
// Otherwise it is plain text: what a user, a tool or the model said, or prose of the template. Plain text
// must be tokenised with special tokens off: `<｜User｜>` in a user's message must not open a turn. A turn
// whose tokens are known (ChatMessage::sampled) is a segment of those, without text.
struct PromptSegment {
  std::string text;
  bool control = false;
  std::vector<std::int32_t> tokens{};
};

struct ChatOptions {
  bool thinking = true;       // thinking mode, else chat mode (no reasoning)
  bool drop_thinking = true;  // leave out reasoning of earlier turns; off if any tools are declared
  bool add_bos = true;        // begin with BOS, unless there is a context
  std::optional<std::string> reasoning_effort = std::nullopt;  // a level of the dialect; absent: no prefix
};

// From the options of the official encoder: thinking_mode ("chat" or "thinking"), drop_thinking,
// add_default_bos_token, reasoning_effort; what is absent stays as in `defaults`. Error: invalid_argument.
Result<ChatOptions> chat_options_from_json(const JsonValue& json, const ChatOptions& defaults = {});

// The prompt for `messages`. `context` holds earlier messages that the model has already seen (they are in
// the KV cache): they decide how `messages` are rendered but are not rendered again. No two plain segments
// are adjacent. Errors: invalid_argument for an unknown role, effort or task and for an empty developer
// message.
Result<std::vector<PromptSegment>> encode_chat(const ChatDialect& dialect,
                                               std::span<const ChatMessage> messages,
                                               const ChatOptions& options = {},
                                               std::span<const ChatMessage> context = {});

// The segments put together; sampled turns are left out.
std::string prompt_text(std::span<const PromptSegment> prompt);

}  // namespace hadal
