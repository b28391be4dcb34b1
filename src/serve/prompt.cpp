#include "serve/prompt.h"

#include <algorithm>

#include <fmt/format.h>

#include "text/chat_encoder.h"

namespace hadal::serve {
namespace {

constexpr std::int64_t kLeastBetween = 256;  // tokens between boundaries that are not special

// Puts the known tokens of earlier turns in, and returns the digest of the visible transcript.
Sha256 recall_turns(const Request& request, const PromptContext& context,
                    std::vector<ChatMessage>& messages) {
  Sha256 transcript{};
  for (std::size_t i = 0; i < messages.size(); ++i) {
    ChatMessage& message = messages[i];
    transcript = extend_transcript(transcript, message);
    if (message.role != "assistant" || context.replay == nullptr || message.wo_eos) continue;
    std::shared_ptr<const SampledTurn> turn = context.replay->by_id(context.name_space, request.turn_ids[i]);
    for (const ToolCall& call : message.tool_calls) {
      if (turn == nullptr) turn = context.replay->by_id(context.name_space, call.id);
    }
    if (turn == nullptr) turn = context.replay->by_transcript(context.name_space, transcript);
    if (turn == nullptr || !agrees(*turn, message)) continue;
    message.sampled = turn->tokens;
    message.sampled_thinking = turn->thinking;
    // In a prompt of the other mode the turn is written out; its reasoning need not be lost.
    if (message.reasoning_content.empty()) message.reasoning_content = turn->reasoning;
  }
  return transcript;
}

class Tokeniser {
 public:
  explicit Tokeniser(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // Stretches between sampled turns are tokenised each by itself: control tokens stand at their borders.
  Result<std::vector<std::int32_t>> encode(const std::vector<PromptSegment>& prompt) {
    for (const PromptSegment& segment : prompt) {
      if (segment.tokens.empty()) {
        pending_.push_back({segment.text, segment.control});
        continue;
      }
      HADAL_RETURN_IF_ERROR(flush());
      tokens_.insert(tokens_.end(), segment.tokens.begin(), segment.tokens.end());
    }
    HADAL_RETURN_IF_ERROR(flush());
    return std::move(tokens_);
  }

 private:
  Status flush() {
    if (pending_.empty()) return {};
    HADAL_ASSIGN_OR_RETURN(const auto ids, tokenizer_.encode(pending_));
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
    pending_.clear();
    return {};
  }

  const Tokenizer& tokenizer_;
  std::vector<TextSegment> pending_;
  std::vector<std::int32_t> tokens_;
};

// The end of system text and tools, the beginning of every user turn that is far enough from the one before,
// of the last two in any case, and the end of a long last one.
std::vector<std::int64_t> find_boundaries(const std::vector<std::int32_t>& tokens,
                                          std::optional<std::int32_t> user) {
  std::vector<std::int64_t> turns;
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    if (tokens[i] == user) turns.push_back(static_cast<std::int64_t>(i));
  }
  std::vector<std::int64_t> boundaries;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const bool special = i == 0 || i + 2 >= turns.size();
    if (special || turns[i] - boundaries.back() >= kLeastBetween) boundaries.push_back(turns[i]);
  }
  const std::int64_t end = static_cast<std::int64_t>(tokens.size()) - 2;  // before <｜Assistant｜><think>
  if (end > 0 && end - (boundaries.empty() ? 0 : boundaries.back()) >= kLeastBetween)
    boundaries.push_back(end);
  return boundaries;
}

bool forces_call(const Request& request) {
  return request.tool_choice.kind == ToolChoice::Kind::required ||
         request.tool_choice.kind == ToolChoice::Kind::named;
}

// An answer that does not think begins with its block of calls, when calls are asked for.
std::vector<PromptSegment> opened_calls(const ChatDialect& dialect) {
  return {{"\n\n<", false}, {std::string(dialect.dsml), true}, {"tool_calls>\n", false}};
}

// Nothing where the model may answer as it likes.
std::optional<AnswerRules> rules_of(const Request& request, bool offers_tools) {
  using Body = AnswerRules::Body;
  AnswerRules rules;
  const bool forced = forces_call(request) && !request.continues_last;
  const bool any_strict = offers_tools && std::any_of(request.declared.begin(), request.declared.end(),
                                                      [](const DeclaredTool& tool) { return tool.strict; });
  if (forced) {
    rules.body = Body::none;
    rules.begins_in_calls = !request.thinking;
  } else if (request.json_schema) {
    rules.body = Body::json_schema;
    rules.schema = *request.json_schema;
    rules.strict = request.strict_schema;
  } else if (request.json_object) {
    rules.body = Body::json_object;
  } else if (any_strict) {
    rules.body = Body::text;
  } else {
    return std::nullopt;
  }
  rules.many_calls = request.parallel_tools;
  for (std::size_t i = 0; offers_tools && i < request.declared.size(); ++i) {
    const DeclaredTool& tool = request.declared[i];
    if (request.tool_choice.kind == ToolChoice::Kind::named && tool.name != request.tool_choice.name)
      continue;
    rules.tools.push_back(
        {tool.name, *request.tools.items[i].find("function")->find("parameters"), tool.strict});
  }
  return rules;
}

}  // namespace

Result<Prompt> chat_prompt(const Request& request, const PromptContext& context, bool with_text) {
  const ChatDialect& dialect = context.dialect;
  const bool offers_tools =
      !request.tools.items.empty() && request.tool_choice.kind != ToolChoice::Kind::none;
  if (forces_call(request) && !offers_tools)
    return fail(ErrorCode::invalid_argument, "tool_choice asks for a call, but there are no tools");
  if (request.tool_choice.kind == ToolChoice::Kind::named &&
      request.find_tool(request.tool_choice.name) == nullptr) {
    return fail(ErrorCode::invalid_argument, fmt::format("tool_choice names {}, which is not among the tools",
                                                         hadal::quoted(request.tool_choice.name)));
  }

  Prompt prompt;
  std::vector<ChatMessage> messages = request.messages;
  if (request.continues_last) messages.back().wo_eos = true;
  prompt.transcript = recall_turns(request, context, messages);
  if (offers_tools) {
    HADAL_ASSIGN_OR_RETURN(auto tools, tools_from_json(request.tools));
    declare_tools(messages, std::move(tools));
  }
  if (request.json_schema || request.json_object) {
    if (messages.front().role != "system") {
      messages.insert(messages.begin(), ChatMessage{});
      messages.front().role = "system";
    }
    if (request.json_schema) messages.front().response_format = to_python_json(*request.json_schema);
    messages.front().json_object = request.json_object;
  }
  ChatOptions options;
  options.thinking = request.thinking;
  if (request.thinking) options.reasoning_effort = std::string(dialect.effort_for(request.effort));
  HADAL_ASSIGN_OR_RETURN(std::vector<PromptSegment> segments, encode_chat(dialect, messages, options));
  const std::string_view think = request.thinking ? dialect.think_start : dialect.think_end;
  if (!request.continues_last &&
      (segments.empty() || segments.back().text != think || !segments.back().control)) {
    // After an assistant's turn it speaks once more.
    segments.push_back({std::string(dialect.assistant), true});
    segments.push_back({std::string(think), true});
  }
  HADAL_ASSIGN_OR_RETURN(prompt.tokens, Tokeniser(context.tokenizer).encode(segments));
  prompt.boundaries = find_boundaries(prompt.tokens, context.tokenizer.id_of(dialect.user));
  prompt.thinking = request.thinking;
  prompt.parser.thinking = request.thinking && !request.continues_last;
  prompt.parser.tool_calls = offers_tools;
  prompt.rules = rules_of(request, offers_tools);
  if (offers_tools) {
    // An answer that is held to rules has its markup right, and what looks like some is text.
    prompt.parser.plain_xml = !prompt.rules;
    prompt.parser.mends_tags = !prompt.rules;
    prompt.parser.schemas = std::make_shared<const ToolSchemas>(tool_schemas_from_json(request.tools));
  }
  if (prompt.rules && prompt.rules->begins_in_calls) {
    HADAL_ASSIGN_OR_RETURN(prompt.opening, Tokeniser(context.tokenizer).encode(opened_calls(dialect)));
    prompt.tokens.insert(prompt.tokens.end(), prompt.opening.begin(), prompt.opening.end());
    prompt.parser.starts_in_tool_calls = true;
  }
  if (with_text) {
    HADAL_ASSIGN_OR_RETURN(prompt.text, context.tokenizer.decode(prompt.tokens));
  }
  return prompt;
}

Result<Prompt> completion_prompt(const Request& request, const Request::Text& text,
                                 const PromptContext& context) {
  const Tokenizer& tokenizer = context.tokenizer;
  Prompt prompt;
  prompt.parser.thinking = false;
  prompt.parser.tool_calls = false;
  const auto bos = tokenizer.id_of(context.dialect.bos);
  if (bos) prompt.tokens.push_back(*bos);
  const auto append = [&](const std::string& part) -> Status {
    HADAL_ASSIGN_OR_RETURN(const auto ids, tokenizer.encode(part));
    prompt.tokens.insert(prompt.tokens.end(), ids.begin(), ids.end());
    return {};
  };
  if (request.suffix) {
    const auto begin = tokenizer.id_of("<｜fim▁begin｜>"), hole = tokenizer.id_of("<｜fim▁hole｜>"),
               end = tokenizer.id_of("<｜fim▁end｜>");
    if (!begin || !hole || !end)
      return fail(ErrorCode::invalid_argument,
                  "suffix cannot be used: this model's tokenizer has no FIM tokens");
    prompt.tokens.push_back(*begin);
    HADAL_RETURN_IF_ERROR(append(text.text));
    prompt.tokens.push_back(*hole);
    HADAL_RETURN_IF_ERROR(append(*request.suffix));
    prompt.tokens.push_back(*end);
  } else if (text.tokens) {
    const auto& ids = *text.tokens;
    if (!ids.empty() && ids.front() == bos) prompt.tokens.clear();
    for (const std::int32_t id : ids) {
      if (id >= tokenizer.vocab_size())
        return fail(ErrorCode::invalid_argument,
                    fmt::format("prompt has token {}, which does not exist", id));
      prompt.tokens.push_back(id);
    }
  } else {
    HADAL_RETURN_IF_ERROR(append(text.text));
  }
  if (prompt.tokens.empty()) return fail(ErrorCode::invalid_argument, "prompt is empty");
  return prompt;
}

}  // namespace hadal::serve
