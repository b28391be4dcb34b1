#include "text/chat_encoder.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <utility>

#include <fmt/format.h>

namespace hadal {
namespace {

// A user turn is a list of blocks: texts of users and results of tools.
struct Block {
  bool is_tool_result = false;
  std::string tool_call_id;
  std::string text;
};

// A message after merging: tool messages have become blocks of user turns.
struct Turn {
  ChatMessage message;
  std::vector<Block> blocks;  // of a user turn, instead of message.content
};

class PromptWriter {
 public:
  explicit PromptWriter(const ChatDialect& dialect) : dialect_(dialect) {}

  void plain(std::string_view text) {
    if (text.empty()) return;
    if (prompt_.empty() || prompt_.back().control || !prompt_.back().tokens.empty()) prompt_.emplace_back();
    prompt_.back().text += text;
  }

  void control(std::string_view token) { prompt_.push_back({std::string(token), true}); }
  void sampled(const std::vector<std::int32_t>& tokens) { prompt_.push_back({"", false, tokens}); }

  // Text of the template: the special tokens in it are meant.
  void markup(std::string_view text) {
    while (!text.empty()) {
      std::size_t first = text.size();
      std::string_view token;
      for (const std::string_view candidate : {dialect_.dsml, dialect_.think_start, dialect_.think_end}) {
        if (const std::size_t at = text.find(candidate); at < first) {
          first = at;
          token = candidate;
        }
      }
      plain(text.substr(0, first));
      if (!token.empty()) control(token);
      text.remove_prefix(first + token.size());
    }
  }

  std::vector<PromptSegment> take() { return std::move(prompt_); }

 private:
  const ChatDialect& dialect_;
  std::vector<PromptSegment> prompt_;
};

// Consecutive user and tool messages become one user turn. A user's text starts a new turn after a turn with
// a task; a tool's result does not (the official code asks only in the first case).
std::vector<Turn> merge_tool_messages(std::span<const ChatMessage> messages) {
  std::vector<Turn> turns;
  for (const ChatMessage& message : messages) {
    const bool is_tool = message.role == "tool";
    if (!is_tool && message.role != "user") {
      turns.push_back({message, {}});
      continue;
    }
    Block block{is_tool, message.tool_call_id, message.content};
    const bool joins = !turns.empty() && turns.back().message.role == "user" &&
                       (is_tool || !turns.back().message.task.has_value());
    if (joins) {
      turns.back().blocks.push_back(std::move(block));
      continue;
    }
    Turn turn;
    turn.message.role = "user";
    turn.message.position = message.position;
    if (!is_tool) turn.message.task = message.task;
    turn.blocks.push_back(std::move(block));
    turns.push_back(std::move(turn));
  }
  return turns;
}

// Puts the results within a user turn into the order of the calls they answer: the results are permuted
// among the places that results have. An unknown id counts as the first call.
class ResultSorter {
 public:
  void see_calls(const ChatMessage& message) {
    if (message.role != "assistant" || message.tool_calls.empty()) return;
    order_.clear();
    for (std::size_t i = 0; i < message.tool_calls.size(); ++i) {
      if (!message.tool_calls[i].id.empty()) order_[message.tool_calls[i].id] = i;
    }
  }

  void sort(Turn& turn) const {
    if (order_.empty()) return;
    std::vector<Block> results;
    for (Block& block : turn.blocks) {
      if (block.is_tool_result) results.push_back(std::move(block));
    }
    std::stable_sort(results.begin(), results.end(),
                     [this](const Block& a, const Block& b) { return rank(a) < rank(b); });
    auto next = results.begin();
    for (Block& block : turn.blocks) {
      if (block.is_tool_result) block = std::move(*next++);
    }
  }

 private:
  std::size_t rank(const Block& block) const {
    const auto found = order_.find(block.tool_call_id);
    return found == order_.end() ? 0 : found->second;
  }

  std::map<std::string, std::size_t> order_;
};

bool opens_generation(const Turn& turn) {
  return turn.message.role == "user" || turn.message.role == "developer";
}

std::ptrdiff_t last_user_index(std::span<const Turn> turns) {
  const auto last = std::find_if(turns.rbegin(), turns.rend(), opens_generation);
  return turns.rend() - last - 1;
}

// Without the reasoning of turns before the last user turn, and without the developer messages (and unknown
// roles) before it.
std::vector<Turn> drop_thinking(std::span<const Turn> turns) {
  constexpr std::array<std::string_view, 4> kKept = {"user", "system", "latest_reminder",
                                                     "direct_search_results"};
  const std::ptrdiff_t last_user = last_user_index(turns);
  std::vector<Turn> kept;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const std::string& role = turns[i].message.role;
    if (static_cast<std::ptrdiff_t>(i) >= last_user ||
        std::find(kKept.begin(), kKept.end(), role) != kKept.end()) {
      kept.push_back(turns[i]);
    } else if (role == "assistant") {
      kept.push_back(turns[i]);
      kept.back().message.reasoning_content.clear();
    }
  }
  return kept;
}

class Renderer {
 public:
  Renderer(const ChatDialect& dialect, const ChatOptions& options, bool dropping, std::span<const Turn> turns)
      : dialect_(dialect),
        thinking_(options.thinking),
        dropping_(dropping),
        turns_(turns),
        last_user_(last_user_index(turns)),
        out_(dialect) {
    if (thinking_ && options.reasoning_effort) effort_ = dialect.find_effort(*options.reasoning_effort);
  }

  PromptWriter& out() { return out_; }

  Status render(std::size_t index) {
    const Turn& turn = turns_[index];
    const ChatMessage& message = turn.message;
    if (index == 0 && effort_ != nullptr) out_.plain(effort_->prefix);
    if (message.role == "system") {
      out_.plain(message.content);
      write_declarations(message);
    } else if (message.role == "developer") {
      if (message.content.empty()) return error(message, "a developer message must have content");
      out_.control(dialect_.user);
      out_.plain(message.content);
      write_declarations(message);
    } else if (message.role == "user") {
      out_.control(dialect_.user);
      write_blocks(turn.blocks);
    } else if (message.role == "latest_reminder") {
      out_.control(dialect_.latest_reminder);
      out_.plain(message.content);
    } else if (message.role == "assistant") {
      write_assistant(index);
    } else {
      return error(message, fmt::format("unknown role {} (known: system, developer, user, assistant, tool, "
                                        "latest_reminder)",
                                        quoted(message.role)));
    }
    return write_transition(index);
  }

 private:
  static tl::unexpected<Error> error(const ChatMessage& message, std::string_view what) {
    return fail(ErrorCode::invalid_argument, fmt::format("messages[{}]: {}", message.position, what));
  }

  // Whether reasoning is shown around the turn at `index`: an assistant's after the last user turn, and the
  // opening <think> after that user turn itself.
  bool shows_thinking(std::size_t index) const {
    return thinking_ && (!dropping_ || static_cast<std::ptrdiff_t>(index) >= last_user_);
  }

  void write_declarations(const ChatMessage& message) {
    if (!message.tools.empty()) {
      out_.plain("\n\n");
      out_.markup(dialect_.tools_head);
      for (const std::string& tool : message.tools) {
        if (&tool != message.tools.data()) out_.plain("\n");
        out_.plain(tool);
      }
      out_.markup(dialect_.tools_tail);
    }
    if (!message.response_format.empty()) {
      out_.plain("\n\n");
      out_.markup(dialect_.response_format_head);
      out_.plain(message.response_format);
    }
    if (message.json_object) {
      out_.plain("\n\n");
      out_.markup(dialect_.json_object_text);
    }
  }

  void write_blocks(std::span<const Block> blocks) {
    for (const Block& block : blocks) {
      if (&block != blocks.data()) out_.plain("\n\n");
      if (block.is_tool_result) out_.plain("<tool_result>");
      out_.plain(block.text);
      if (block.is_tool_result) out_.plain("</tool_result>");
    }
  }

  void write_assistant(std::size_t index) {
    const ChatMessage& message = turns_[index].message;
    const bool answers_task = index > 0 && turns_[index - 1].message.task.has_value();
    const bool follows_user = index > 0 && opens_generation(turns_[index - 1]) && !answers_task;
    if (!message.sampled.empty() && follows_user && message.sampled_thinking == shows_thinking(index - 1))
      return out_.sampled(message.sampled);
    if (shows_thinking(index) && !answers_task) {
      out_.plain(message.reasoning_content);
      out_.control(dialect_.think_end);
    }
    out_.plain(message.content);
    if (!message.tool_calls.empty()) write_calls(message.tool_calls);
    if (!message.wo_eos) out_.control(dialect_.eos);
  }

  void write_calls(std::span<const ToolCall> calls) {
    out_.plain("\n\n");
    open_tag("tool_calls>\n");
    for (const ToolCall& call : calls) {
      if (&call != calls.data()) out_.plain("\n");
      open_tag("invoke name=\"");
      out_.plain(call.name);
      out_.plain("\">\n");
      write_arguments(call);
      out_.plain("\n");
      close_tag("invoke>");
    }
    out_.plain("\n");
    close_tag("tool_calls>");
  }

  void open_tag(std::string_view rest) {
    out_.plain("<");
    out_.control(dialect_.dsml);
    out_.plain(rest);
  }

  void close_tag(std::string_view rest) {
    out_.plain("</");
    out_.control(dialect_.dsml);
    out_.plain(rest);
  }

  // One parameter per member; arguments that are not a JSON object become one parameter named "arguments".
  void write_arguments(const ToolCall& call) {
    if (!call.arguments_is_text) return write_parameter("arguments", call.arguments, false);
    const Result<JsonValue> arguments = parse_json(call.arguments, {.python_constants = true});
    if (!arguments || !arguments->is_object()) return write_parameter("arguments", call.arguments, true);
    for (const JsonMember& member : arguments->members) {
      if (&member != arguments->members.data()) out_.plain("\n");
      const bool is_string = member.value.is_string();
      write_parameter(member.key, is_string ? member.value.text : to_python_json(member.value), is_string);
    }
  }

  void write_parameter(std::string_view name, std::string_view value, bool is_string) {
    open_tag("parameter name=\"");
    out_.plain(name);
    out_.plain(is_string ? "\" string=\"true\">" : "\" string=\"false\">");
    out_.plain(value);
    close_tag("parameter>");
  }

  // What follows a message when the assistant speaks next: the last message, or one before an assistant's.
  Status write_transition(std::size_t index) {
    const ChatMessage& message = turns_[index].message;
    if (index + 1 < turns_.size()) {
      const std::string& next = turns_[index + 1].message.role;
      if (next != "assistant" && next != "latest_reminder") return {};
    }
    if (message.task) {
      const auto task = std::find_if(dialect_.tasks.begin(), dialect_.tasks.end(),
                                     [&](const TaskToken& known) { return known.task == *message.task; });
      if (task == dialect_.tasks.end())
        return error(message, fmt::format("unknown task {}", quoted(*message.task)));
      if (task->task == "action") {
        out_.control(dialect_.assistant);
        out_.control(thinking_ ? dialect_.think_start : dialect_.think_end);
      }
      out_.control(task->token);
    } else if (opens_generation(turns_[index])) {
      out_.control(dialect_.assistant);
      out_.control(shows_thinking(index) ? dialect_.think_start : dialect_.think_end);
    }
    return {};
  }

  const ChatDialect& dialect_;
  bool thinking_;
  bool dropping_;
  std::span<const Turn> turns_;
  std::ptrdiff_t last_user_;
  const ReasoningEffort* effort_ = nullptr;
  PromptWriter out_;
};

std::string known_efforts(const ChatDialect& dialect) {
  std::string known;
  for (const ReasoningEffort& effort : dialect.efforts)
    known.append(known.empty() ? "" : ", ").append(effort.level);
  return known;
}

}  // namespace

Result<std::vector<PromptSegment>> encode_chat(const ChatDialect& dialect,
                                               std::span<const ChatMessage> messages,
                                               const ChatOptions& options,
                                               std::span<const ChatMessage> context) {
  if (options.reasoning_effort && dialect.find_effort(*options.reasoning_effort) == nullptr) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("reasoning effort {} is not one of dialect {} (known: {})",
                            quoted(*options.reasoning_effort), dialect.name, known_efforts(dialect)));
  }

  std::vector<Turn> seen = merge_tool_messages(context);
  std::vector<Turn> turns = seen;
  for (Turn& turn : merge_tool_messages(messages)) turns.push_back(std::move(turn));
  ResultSorter sorter;
  for (Turn& turn : turns) {
    sorter.see_calls(turn.message);
    sorter.sort(turn);
  }

  const bool has_tools =
      std::any_of(turns.begin(), turns.end(), [](const Turn& turn) { return !turn.message.tools.empty(); });
  const bool dropping = options.drop_thinking && !has_tools;
  // How many turns to render, counted as the official code does: dropping may remove developer messages from
  // the context that were still there when the context was rendered, and then the count is too low, even
  // negative (docs/chat.md).
  std::ptrdiff_t n_seen = static_cast<std::ptrdiff_t>(seen.size());
  if (options.thinking && dropping) {
    turns = drop_thinking(turns);
    n_seen = static_cast<std::ptrdiff_t>(drop_thinking(seen).size());
  }

  Renderer renderer(dialect, options, dropping, turns);
  if (options.add_bos && context.empty()) renderer.out().control(dialect.bos);
  for (auto i = static_cast<std::size_t>(n_seen); i < turns.size(); ++i) {
    HADAL_RETURN_IF_ERROR(renderer.render(i));
  }
  return renderer.out().take();
}

Result<ChatOptions> chat_options_from_json(const JsonValue& json, const ChatOptions& defaults) {
  ChatOptions options = defaults;
  if (!json.is_object()) return fail(ErrorCode::invalid_argument, "options must be an object");
  if (const JsonValue* mode = json.find("thinking_mode"); mode != nullptr) {
    if (mode->text != "chat" && mode->text != "thinking") {
      return fail(ErrorCode::invalid_argument, "thinking_mode must be \"chat\" or \"thinking\"");
    }
    options.thinking = mode->text == "thinking";
  }
  if (const JsonValue* drop = json.find("drop_thinking"); drop != nullptr)
    options.drop_thinking = drop->truthy();
  if (const JsonValue* bos = json.find("add_default_bos_token"); bos != nullptr)
    options.add_bos = bos->truthy();
  if (const JsonValue* effort = json.find("reasoning_effort"); effort != nullptr) {
    if (!effort->is_null() && !effort->is_string()) {
      return fail(ErrorCode::invalid_argument, "reasoning_effort must be a string or null");
    }
    options.reasoning_effort = effort->is_string() ? std::optional<std::string>(effort->text) : std::nullopt;
  }
  return options;
}

std::string prompt_text(std::span<const PromptSegment> prompt) {
  std::string text;
  for (const PromptSegment& segment : prompt) text += segment.text;
  return text;
}

}  // namespace hadal
