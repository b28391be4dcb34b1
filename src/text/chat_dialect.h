// What distinguishes the prompt formats of the DeepSeek-V4 releases, as data: the encoder reads every token
// and every fixed text that it writes from one of these tables (docs/chat.md).
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include <hadal/error.h>

namespace hadal {

// A level of reasoning effort that the dialect knows, and the text that it puts right after BOS.
struct ReasoningEffort {
  std::string_view level;
  std::string_view prefix;
};

// A "quick instruction": the value of a message's `task` field and its token.
struct TaskToken {
  std::string_view task;
  std::string_view token;
};

struct ChatDialect {
  std::string_view name;

  // Special tokens. Only what the template writes becomes one; see PromptSegment.
  std::string_view bos = "<｜begin▁of▁sentence｜>";
  std::string_view eos = "<｜end▁of▁sentence｜>";
  std::string_view user = "<｜User｜>";
  std::string_view assistant = "<｜Assistant｜>";
  std::string_view latest_reminder = "<｜latest_reminder｜>";
  std::string_view think_start = "<think>";
  std::string_view think_end = "</think>";
  std::string_view dsml = "｜DSML｜";
  std::span<const TaskToken> tasks;

  // Weakest first. Without an effort asked for, nothing is written.
  std::span<const ReasoningEffort> efforts;

  // The tools block: `tools_head`, one JSON schema per line, `tools_tail`.
  std::string_view tools_head;
  std::string_view tools_tail;
  std::string_view response_format_head;
  std::string_view
      json_object_text;  // asks for a JSON object of no schema; DeepSeek's API, not the encoder, has it

  const ReasoningEffort* find_effort(std::string_view level) const;

  // What a user's low, high or max means here: the level of that name, else the weakest one. (The preview
  // release has no "low": its weakest level is "high", which adds nothing to the prompt.)
  std::string_view effort_for(std::string_view level) const;
};

const ChatDialect& dialect_v4();       // DeepSeek-V4 preview (April 2026)
const ChatDialect& dialect_v4_0731();  // DeepSeek-V4-Flash-0731 and later: other effort prefixes

// "v4" or "v4-0731". Error: invalid_argument, with the names that exist.
Result<const ChatDialect*> find_dialect(std::string_view name);

// The dialect of a model by its config.json (the text of it): there is no version field, but only the 0731
// releases have keys that begin with "dspark_". Error: corrupt when it is not a JSON object.
Result<const ChatDialect*> dialect_of_config(std::string_view config_json);

}  // namespace hadal
