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

Json usage_json(const Usage& usage) {
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

class ChatAnswer final : public Answer {
 public:
  using Answer::Answer;

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
    if (!streams()) return send_whole(whole(result));
    Json chunk = this->chunk();
    chunk["choices"] = {{{"index", 0},
                         {"delta", Json::object()},
                         {"logprobs", nullptr},
                         {"finish_reason", finish_reason(result.finish)}}};
    if (request_.include_usage) chunk["usage"] = nullptr;
    send_event("", chunk);
    if (request_.include_usage) {
      chunk["choices"] = Json::array();
      chunk["usage"] = usage_json(result.usage);
      send_event("", chunk);
    }
    send_text("[DONE]");
    end_stream();
  }

 private:
  Json chunk() const {
    return {{"id", "chatcmpl-" + id_},
            {"object", "chat.completion.chunk"},
            {"created", created_},
            {"model", model_},
            {"system_fingerprint", "hadal"}};
  }

  void send_delta(Json delta, std::span<const TokenReport> reports) {
    Json chunk = this->chunk();
    chunk["choices"] = {{{"index", 0},
                         {"delta", std::move(delta)},
                         {"logprobs", reports.empty() ? Json() : logprobs_json(reports)},
                         {"finish_reason", nullptr}}};
    if (request_.include_usage) chunk["usage"] = nullptr;
    send_event("", chunk);
  }

  Json whole(const TurnResult& result) const {
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
    return {{"id", "chatcmpl-" + id_},
            {"object", "chat.completion"},
            {"created", created_},
            {"model", model_},
            {"system_fingerprint", "hadal"},
            {"choices",
             {{{"index", 0},
               {"message", std::move(message)},
               {"logprobs", request_.logprobs ? logprobs_json(result.logprobs) : Json()},
               {"finish_reason", finish_reason(result.finish)}}}},
            {"usage", usage_json(result.usage)}};
  }
};

class CompletionAnswer final : public Answer {
 public:
  using Answer::Answer;

  void start(const Usage& /*usage*/) override {
    if (streams() && request_.echo) send_piece(request_.prompt, {});
  }
  void event(const OutputEvent& event, std::span<const TokenReport> reports) override {
    if (streams() && event.kind == OutputEvent::Kind::content) send_piece(event.text, reports);
  }
  void finish(const TurnResult& result) override {
    Json body = head();
    const std::string text = streams() ? "" : (request_.echo ? request_.prompt : "") + result.content;
    body["choices"] = {{{"text", text},
                        {"index", 0},
                        {"logprobs", streams() || !request_.logprobs ? Json() : logprobs(result.logprobs)},
                        {"finish_reason", finish_reason(result.finish)}}};
    if (!streams()) {
      body["usage"] = usage_json(result.usage);
      return send_whole(body);
    }
    if (request_.include_usage) body["usage"] = nullptr;
    send_event("", body);
    if (request_.include_usage) {
      body["choices"] = Json::array();
      body["usage"] = usage_json(result.usage);
      send_event("", body);
    }
    send_text("[DONE]");
    end_stream();
  }

 private:
  Json head() const {
    return {{"id", "cmpl-" + id_},
            {"object", "text_completion"},
            {"created", created_},
            {"model", model_},
            {"system_fingerprint", "hadal"}};
  }

  void send_piece(const std::string& text, std::span<const TokenReport> reports) {
    Json body = head();
    body["choices"] = {{{"text", text},
                        {"index", 0},
                        {"logprobs", reports.empty() ? Json() : logprobs(reports)},
                        {"finish_reason", nullptr}}};
    if (request_.include_usage) body["usage"] = nullptr;
    send_event("", body);
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

std::unique_ptr<Answer> make_chat_answer(const Request& request, std::string turn_id, std::string model,
                                         std::shared_ptr<HttpReply> reply, std::string request_id) {
  return std::make_unique<ChatAnswer>(request, std::move(turn_id), std::move(model), std::move(reply),
                                      std::move(request_id));
}

std::unique_ptr<Answer> make_completion_answer(const Request& request, std::string turn_id, std::string model,
                                               std::shared_ptr<HttpReply> reply, std::string request_id) {
  return std::make_unique<CompletionAnswer>(request, std::move(turn_id), std::move(model), std::move(reply),
                                            std::move(request_id));
}

}  // namespace hadal::serve
