// Answers of chat completions and completions.
#include <fmt/format.h>

#include "serve/answer.h"
#include "text/utf8.h"

namespace hadal::serve {
namespace {

std::string_view finish_reason(TurnFinish finish) {
  switch (finish) {
    case TurnFinish::length:
      return "length";
    case TurnFinish::tool_calls:
      return "tool_calls";
    default:
      return "stop";
  }
}

Json openai_usage(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_cache_hit_tokens", usage.cached_tokens},
          {"prompt_cache_miss_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}};
}

Json bytes_json(std::string_view bytes) {
  Json array = Json::array();
  for (const char c : bytes) array.push_back(static_cast<unsigned char>(c));
  return array;
}

Json logprobs_json(std::span<const TokenReport> reports) {
  Json content = Json::array();
  for (const TokenReport& report : reports) {
    Json top = Json::array();
    for (const auto& [bytes, logprob] : report.top)
      top.push_back({{"token", to_valid_utf8(bytes)}, {"logprob", logprob}, {"bytes", bytes_json(bytes)}});
    content.push_back({{"token", to_valid_utf8(report.bytes)},
                       {"logprob", report.logprob},
                       {"bytes", bytes_json(report.bytes)},
                       {"top_logprobs", std::move(top)}});
  }
  return {{"content", std::move(content)}};
}

// What both APIs have in common: chunks of one choice each, and an end that all choices wait for.
class ChoiceAnswer : public Answer {
 public:
  using Answer::Answer;

 protected:
  virtual Json head() const = 0;

  void send_choice(Json choice) {
    Json chunk = head();
    chunk["choices"] = Json::array({std::move(choice)});
    if (request_.include_usage) chunk["usage"] = nullptr;
    send_event("", chunk);
  }

  // `choice`: the whole, or the last chunk of a stream.
  void finish_choice(Json choice, const Usage& usage) {
    if (streams()) send_choice(choice);
    if (!delivery().complete(setup_.choice, streams() ? Json() : std::move(choice), usage)) return;
    Json body = head();
    body["choices"] = streams() ? Json::array() : delivery().choices();
    body["usage"] = openai_usage(delivery().usage());
    if (!streams()) return delivery().send(to_text(body));
    if (request_.include_usage) send_event("", body);
    delivery().write("data: [DONE]\n\n");
    delivery().end();
  }
};

class ChatAnswer final : public ChoiceAnswer {
 public:
  using ChoiceAnswer::ChoiceAnswer;

  void start(const Usage& /*usage*/) override {
    if (!streams()) return;
    Json delta = {{"role", "assistant"}, {"content", request_.thinking ? Json() : Json("")}};
    if (request_.thinking) delta["reasoning_content"] = "";
    send_delta(std::move(delta), {});
  }

  void event(const OutputEvent& event, std::span<const TokenReport> reports) override {
    if (!streams()) return;
    using Kind = OutputEvent::Kind;
    switch (event.kind) {
      case Kind::reasoning:
        if (request_.show_thinking) send_delta({{"reasoning_content", event.text}}, {});
        break;
      case Kind::content:
        send_delta({{"content", event.text}}, reports);
        break;
      case Kind::tool_call_start:
        send_delta({{"tool_calls",
                     {{{"index", event.index},
                       {"id", call_id(event.index)},
                       {"type", "function"},
                       {"function", {{"name", event.text}, {"arguments", ""}}}}}}},
                   {});
        break;
      case Kind::tool_call_arguments:
        send_delta({{"tool_calls", {{{"index", event.index}, {"function", {{"arguments", event.text}}}}}}},
                   {});
        break;
      case Kind::tool_call_end:
      case Kind::finish:
        break;
    }
  }

  void finish(const TurnResult& result) override {
    Json choice = {{"index", setup_.choice}};
    if (streams()) {
      choice["delta"] = Json::object();
      choice["logprobs"] = nullptr;
    } else {
      choice["message"] = message(result);
      choice["logprobs"] = request_.logprobs ? logprobs_json(result.logprobs) : Json();
    }
    choice["finish_reason"] = finish_reason(result.finish);
    finish_choice(std::move(choice), result.usage);
  }

 private:
  Json head() const override {
    return {{"id", "chatcmpl-" + setup_.response_id},
            {"object", streams() ? "chat.completion.chunk" : "chat.completion"},
            {"created", created_},
            {"model", model_},
            {"system_fingerprint", "hadal"}};
  }

  void send_delta(Json delta, std::span<const TokenReport> reports) {
    send_choice({{"index", setup_.choice},
                 {"delta", std::move(delta)},
                 {"logprobs", reports.empty() ? Json() : logprobs_json(reports)},
                 {"finish_reason", nullptr}});
  }

  Json message(const TurnResult& result) const {
    const bool only_calls = result.content.empty() && !result.calls.empty();
    Json message = {{"role", "assistant"}, {"content", only_calls ? Json() : Json(result.content)}};
    if (request_.thinking && request_.show_thinking) message["reasoning_content"] = result.reasoning;
    message["refusal"] = nullptr;
    if (!result.calls.empty()) {
      Json calls = Json::array();
      for (const ToolCall& call : result.calls) {
        calls.push_back({{"id", call.id},
                         {"type", "function"},
                         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
      }
      message["tool_calls"] = std::move(calls);
    }
    return message;
  }
};

class CompletionAnswer final : public ChoiceAnswer {
 public:
  using ChoiceAnswer::ChoiceAnswer;

  void start(const Usage& /*usage*/) override {
    if (streams() && request_.echo) send_piece(request_.prompt_of(setup_.choice).text, {});
  }
  void event(const OutputEvent& event, std::span<const TokenReport> reports) override {
    if (streams() && event.kind == OutputEvent::Kind::content) send_piece(event.text, reports);
  }
  void finish(const TurnResult& result) override {
    const std::string echoed = request_.echo ? request_.prompt_of(setup_.choice).text : "";
    finish_choice({{"text", streams() ? "" : echoed + result.content},
                   {"index", setup_.choice},
                   {"logprobs", streams() || !request_.logprobs ? Json() : logprobs(result.logprobs)},
                   {"finish_reason", finish_reason(result.finish)}},
                  result.usage);
  }

 private:
  Json head() const override {
    return {{"id", "cmpl-" + setup_.response_id},
            {"object", "text_completion"},
            {"created", created_},
            {"model", model_},
            {"system_fingerprint", "hadal"}};
  }

  void send_piece(const std::string& text, std::span<const TokenReport> reports) {
    send_choice({{"text", text},
                 {"index", setup_.choice},
                 {"logprobs", reports.empty() ? Json() : logprobs(reports)},
                 {"finish_reason", nullptr}});
  }

  // The shape of this API: arrays side by side. Offsets count bytes of the answer.
  Json logprobs(std::span<const TokenReport> reports) {
    Json tokens = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
    for (const TokenReport& report : reports) {
      tokens.push_back(to_valid_utf8(report.bytes));
      values.push_back(report.logprob);
      offsets.push_back(offset_);
      offset_ += report.bytes.size();
      Json top = Json::object();
      for (const auto& [bytes, logprob] : report.top) top[to_valid_utf8(bytes)] = logprob;
      tops.push_back(std::move(top));
    }
    return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
  }

  std::size_t offset_ = 0;
};

}  // namespace

std::unique_ptr<Answer> make_chat_answer(AnswerSetup setup) {
  return std::make_unique<ChatAnswer>(std::move(setup));
}

std::unique_ptr<Answer> make_completion_answer(AnswerSetup setup) {
  return std::make_unique<CompletionAnswer>(std::move(setup));
}

}  // namespace hadal::serve
