// Answers of the Responses API. The output is a list of items (reasoning, message, function_call); a stream
// tells of each as it grows, in numbered events.
#include <chrono>

#include <fmt/format.h>

#include "serve/answer.h"

namespace hadal::serve {
namespace {

Json responses_usage(const Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens},
          {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}, {"cache_write_tokens", 0}}},
          {"output_tokens", usage.completion_tokens},
          {"output_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
}

class ResponsesAnswer final : public Answer {
 public:
  using Answer::Answer;

  void start(const Usage& /*usage*/) override {
    if (!streams()) return;
    const Json response = this->response("in_progress", nullptr);
    event_of("response.created", {{"response", response}});
    event_of("response.in_progress", {{"response", response}});
  }

  void event(const OutputEvent& event, std::span<const TokenReport> reports) override {
    using Kind = OutputEvent::Kind;
    switch (event.kind) {
      case Kind::reasoning:
        if (!request_.show_thinking) break;
        open(Item::reasoning, 0);
        text_ += event.text;
        event_of("response.reasoning_text.delta", {{"content_index", 0}, {"delta", event.text}}, true);
        break;
      case Kind::content:
        open(Item::message, 0);
        text_ += event.text;
        event_of("response.output_text.delta",
                 {{"content_index", 0}, {"delta", event.text}, {"logprobs", logprobs(reports)}}, true);
        for (const TokenReport& report : reports) reports_.push_back(report);
        break;
      case Kind::tool_call_start:
        close();
        name_ = event.text;
        open(Item::call, event.index);
        break;
      case Kind::tool_call_arguments:
        text_ += event.text;
        if (!is_custom()) event_of("response.function_call_arguments.delta", {{"delta", event.text}}, true);
        break;
      case Kind::tool_call_end:
        close();
        break;
      case Kind::finish:
        break;
    }
  }

  void finish(const TurnResult& result) override {
    if (open_ == Item::call) {
      drop_call();  // it was cut off, and must not look as if it could be made
    } else {
      close();
    }
    const bool cut = result.finish == TurnFinish::length;
    Json response = this->response(cut ? "incomplete" : "completed", responses_usage(result.usage));
    if (cut) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
    if (!streams()) return delivery().send(to_text(response));
    event_of(cut ? "response.incomplete" : "response.completed", {{"response", std::move(response)}});
    delivery().end();
  }

 private:
  enum class Item : std::uint8_t { none, reasoning, message, call };

  // Fields of the event behind type and sequence_number; of an item, with where it is.
  void event_of(std::string_view type, Json fields, bool of_item = false) {
    if (!streams()) return;
    Json event = numbered(type, Json::object());
    if (of_item) {
      event["item_id"] = item_id_;
      event["output_index"] = output_.size();
    }
    event.update(fields);
    send_event(type, event);
  }
  Json numbered(std::string_view type, Json fields) {
    Json event = {{"type", type}, {"sequence_number", sequence_++}};
    event.update(fields);
    return event;
  }

  bool is_custom() const {
    const DeclaredTool* tool = request_.find_tool(name_);
    return tool != nullptr && tool->custom;
  }

  static Json logprobs(std::span<const TokenReport> reports) {
    Json array = Json::array();
    for (const TokenReport& report : reports) {
      Json top = Json::array();
      for (const auto& [bytes, logprob] : report.top)
        top.push_back({{"token", bytes}, {"logprob", logprob}, {"bytes", Json::array()}});
      array.push_back({{"token", report.bytes},
                       {"logprob", report.logprob},
                       {"bytes", Json::array()},
                       {"top_logprobs", top}});
    }
    return array;
  }

  Json text_part(const std::string& text) const {
    return {{"type", "output_text"},
            {"text", text},
            {"annotations", Json::array()},
            {"logprobs", logprobs(reports_)}};
  }

  // The item that is open, as it is now.
  Json item(std::string_view status) const {
    const bool done = status != "in_progress";
    if (open_ == Item::reasoning) {
      Json content = Json::array();
      if (done) content.push_back({{"type", "reasoning_text"}, {"text", text_}});
      return {{"id", item_id_},     {"type", "reasoning"},          {"summary", Json::array()},
              {"content", content}, {"encrypted_content", nullptr}, {"status", status}};
    }
    if (open_ == Item::message) {
      Json content = Json::array();
      if (done) content.push_back(text_part(text_));
      return {{"id", item_id_},
              {"type", "message"},
              {"status", status},
              {"role", "assistant"},
              {"content", content}};
    }
    const DeclaredTool* tool = request_.find_tool(name_);
    const std::string& wire_name = tool == nullptr ? name_ : tool->wire_name;
    Json call = {
        {"id", item_id_}, {"type", is_custom() ? "custom_tool_call" : "function_call"}, {"status", status}};
    if (is_custom()) {
      call["call_id"] = call_id_;
      call["name"] = wire_name;
      call["input"] = done ? custom_input() : "";
    } else {
      call["arguments"] = done ? text_ : "";
      call["call_id"] = call_id_;
      call["name"] = wire_name;
    }
    if (tool != nullptr && !tool->name_space.empty()) call["namespace"] = tool->name_space;
    return call;
  }

  std::string custom_input() const {
    const Json arguments = Json::parse(text_, nullptr, /*allow_exceptions=*/false);
    const auto input = arguments.is_object() ? arguments.find("input") : arguments.end();
    return input != arguments.end() && input->is_string() ? input->get<std::string>() : text_;
  }

  void open(Item kind, int index) {
    if (open_ == kind && kind != Item::call) return;
    close();
    open_ = kind;
    text_.clear();
    reports_.clear();
    const std::string_view prefix = kind == Item::reasoning ? "rs_" : kind == Item::message ? "msg_" : "fc_";
    item_id_ =
        fmt::format("{}{}{:02}", prefix, id_, kind == Item::call ? index : static_cast<int>(output_.size()));
    call_id_ = call_id(index);
    event_of("response.output_item.added", {{"output_index", output_.size()}, {"item", item("in_progress")}});
    if (kind == Item::message)
      event_of("response.content_part.added", {{"content_index", 0}, {"part", text_part("")}}, true);
    if (kind == Item::reasoning) {
      event_of("response.content_part.added",
               {{"content_index", 0}, {"part", {{"type", "reasoning_text"}, {"text", ""}}}}, true);
    }
  }

  void close() {
    if (open_ == Item::none) return;
    if (open_ == Item::reasoning) {
      event_of("response.reasoning_text.done", {{"content_index", 0}, {"text", text_}}, true);
      event_of("response.content_part.done",
               {{"content_index", 0}, {"part", {{"type", "reasoning_text"}, {"text", text_}}}}, true);
    } else if (open_ == Item::message) {
      event_of("response.output_text.done",
               {{"content_index", 0}, {"text", text_}, {"logprobs", logprobs(reports_)}}, true);
      event_of("response.content_part.done", {{"content_index", 0}, {"part", text_part(text_)}}, true);
    } else if (is_custom()) {
      const std::string input = custom_input();
      event_of("response.custom_tool_call_input.delta", {{"delta", input}}, true);
      event_of("response.custom_tool_call_input.done", {{"input", input}}, true);
    } else {
      event_of("response.function_call_arguments.done", {{"name", name_}, {"arguments", text_}}, true);
    }
    Json done = item("completed");
    event_of("response.output_item.done", {{"output_index", output_.size()}, {"item", done}});
    output_.push_back(std::move(done));
    open_ = Item::none;
  }

  void drop_call() {
    Json cut = item("incomplete");
    event_of("response.output_item.done", {{"output_index", output_.size()}, {"item", cut}});
    output_.push_back(std::move(cut));
    open_ = Item::none;
  }

  Json response(std::string_view status, const Json& usage) const {
    Json body = {
        {"id", "resp_" + id_}, {"object", "response"}, {"created_at", created_},        {"status", status},
        {"background", false}, {"error", nullptr},     {"incomplete_details", nullptr}, {"model", model_},
        {"output", output_}};
    body.update(request_.echoed);
    body["usage"] = usage;
    return body;
  }

  std::string error_in_stream(const ApiError& error) override {
    Json failed = response("failed", nullptr);
    const Json said = error.stream_body(Api::responses);
    failed["error"] = {{"code", said["code"]}, {"message", said["message"]}};
    std::string text;
    if (sequence_ == 0) {
      text = event_text("response.created",
                        numbered("response.created", {{"response", response("in_progress", nullptr)}}));
    }
    return text +
           event_text("response.failed", numbered("response.failed", {{"response", std::move(failed)}}));
  }

  Item open_ = Item::none;
  std::string item_id_, call_id_, name_, text_;
  std::vector<TokenReport> reports_;  // of the message that is open
  Json output_ = Json::array();
  std::int64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<Answer> make_responses_answer(AnswerSetup setup) {
  return std::make_unique<ResponsesAnswer>(std::move(setup));
}

}  // namespace hadal::serve
