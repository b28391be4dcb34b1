// Answers of the Messages API. A stream is one block after another: thinking, text, tool_use.
#include <algorithm>

#include <fmt/format.h>

#include "serve/answer.h"

namespace hadal::serve {
namespace {

Json stop_reason(TurnFinish finish) {
  switch (finish) {
    case TurnFinish::length:
      return "max_tokens";
    case TurnFinish::tool_calls:
      return "tool_use";
    case TurnFinish::stop_sequence:
      return "stop_sequence";
    case TurnFinish::stop:
      return "end_turn";
  }
  return nullptr;
}

// What was read from the cache is not among the input tokens here.
Json messages_usage(const Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", usage.cached_tokens},
          {"output_tokens", usage.completion_tokens}};
}

class MessagesAnswer final : public Answer {
 public:
  using Answer::Answer;

  void start(const Usage& usage) override {
    if (!streams()) return;
    Json message = head(usage);
    message["content"] = Json::array();
    message["stop_reason"] = nullptr;
    message["stop_sequence"] = nullptr;
    send_event("message_start", {{"type", "message_start"}, {"message", std::move(message)}});
    send_event("ping", {{"type", "ping"}});
    started_ = true;
  }

  void event(const OutputEvent& event, std::span<const TokenReport> /*reports*/) override {
    if (!streams()) return;
    using Kind = OutputEvent::Kind;
    switch (event.kind) {
      case Kind::reasoning:
        open(Block::thinking, {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
        if (request_.show_thinking) delta({{"type", "thinking_delta"}, {"thinking", event.text}});
        break;
      case Kind::content:
        open(Block::text, {{"type", "text"}, {"text", ""}});
        delta({{"type", "text_delta"}, {"text", event.text}});
        break;
      case Kind::tool_call_start:
        close();
        open(Block::tool, {{"type", "tool_use"},
                           {"id", call_id(event.index)},
                           {"name", event.text},
                           {"input", Json::object()}});
        break;
      case Kind::tool_call_arguments:
        delta({{"type", "input_json_delta"}, {"partial_json", event.text}});
        break;
      case Kind::tool_call_end:
        close();
        break;
      case Kind::finish:
        break;
    }
  }

  void finish(const TurnResult& result) override {
    if (!streams()) return delivery().send(with_inputs(to_text(whole(result)), result));
    close();
    const Json sequence = result.stop_sequence.empty() ? Json() : Json(result.stop_sequence);
    send_event("message_delta",
               {{"type", "message_delta"},
                {"delta", {{"stop_reason", stop_reason(result.finish)}, {"stop_sequence", sequence}}},
                {"usage", messages_usage(result.usage)}});
    send_event("message_stop", {{"type", "message_stop"}});
    delivery().end();
  }

  void keep_alive() override {
    if (!started_) return Answer::keep_alive();  // nothing may come before message_start but a comment
    send_event("ping", {{"type", "ping"}});
  }

 private:
  enum class Block : std::uint8_t { none, thinking, text, tool };

  Json head(const Usage& usage) const {
    return {{"id", "msg_" + id_},
            {"type", "message"},
            {"role", "assistant"},
            {"model", model_},
            {"usage", messages_usage(usage)}};
  }

  void open(Block block, const Json& content) {
    if (open_ == block && block != Block::tool) return;
    close();
    open_ = block;
    send_event("content_block_start",
               {{"type", "content_block_start"}, {"index", index_}, {"content_block", content}});
  }
  void delta(const Json& delta) {
    send_event("content_block_delta", {{"type", "content_block_delta"}, {"index", index_}, {"delta", delta}});
  }
  void close() {
    if (open_ == Block::none) return;
    if (open_ == Block::thinking) delta({{"type", "signature_delta"}, {"signature", id_}});
    send_event("content_block_stop", {{"type", "content_block_stop"}, {"index", index_}});
    open_ = Block::none;
    ++index_;
  }

  Json whole(const TurnResult& result) const {
    Json message = head(result.usage);
    Json content = Json::array();
    if (!result.reasoning.empty()) {
      content.push_back({{"type", "thinking"},
                         {"thinking", request_.show_thinking ? result.reasoning : std::string()},
                         {"signature", id_}});
    }
    if (!result.content.empty()) content.push_back({{"type", "text"}, {"text", result.content}});
    for (const ToolCall& call : result.calls) {
      content.push_back(
          {{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", input_mark(call)}});
    }
    message["content"] = std::move(content);
    message["stop_reason"] = stop_reason(result.finish);
    message["stop_sequence"] = result.stop_sequence.empty() ? Json() : Json(result.stop_sequence);
    return message;
  }

  // Arguments go out as the model wrote them, digit for digit, which no value of Json can hold: in its place
  // stands a string that nothing else can contain, since nobody has seen the id.
  static std::string input_mark(const ToolCall& call) { return "input of " + call.id; }
  static std::string with_inputs(std::string text, const TurnResult& result) {
    for (const ToolCall& call : result.calls) {
      const std::string mark = to_text(input_mark(call));
      text.replace(text.find(mark), mark.size(), call.arguments);
    }
    return text;
  }

  std::string error_in_stream(const ApiError& error) override {
    return event_text("error", error.stream_body(Api::messages));
  }

  Block open_ = Block::none;
  int index_ = 0;
  bool started_ = false;
};

}  // namespace

std::unique_ptr<Answer> make_messages_answer(AnswerSetup setup) {
  return std::make_unique<MessagesAnswer>(std::move(setup));
}

}  // namespace hadal::serve
