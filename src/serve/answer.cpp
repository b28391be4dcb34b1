#include "serve/answer.h"

#include <utility>

#include <fmt/format.h>

#include "base/check.h"

namespace hadal::serve {

Delivery::Delivery(std::shared_ptr<HttpReply> reply, std::string request_id, Api api, bool streams,
                   std::size_t choices)
    : reply_(std::move(reply)),
      request_id_(std::move(request_id)),
      api_(api),
      streams_(streams),
      choices_(choices),
      missing_(choices) {}

void Delivery::begin(std::string_view type) {
  if (begun_) return;
  begun_ = true;
  reply_->begin(200, {{"Content-Type", std::string(type)},
                      {"Cache-Control", "no-cache"},
                      {"X-Accel-Buffering", "no"},
                      {"x-request-id", request_id_},
                      {"request-id", request_id_}});
}

void Delivery::write(std::string piece) {
  const std::lock_guard lock(mutex_);
  if (over_) return;
  begin(streams_ ? "text/event-stream; charset=utf-8" : "application/json");
  reply_->write(std::move(piece));
}

void Delivery::end() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(over_, true)) return;
  reply_->end();
}

void Delivery::send(std::string body) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(over_, true)) return;
  if (begun_) {  // blanks went ahead
    reply_->write(std::move(body));
    reply_->end();
    return;
  }
  reply_->send(
      200, {{"Content-Type", "application/json"}, {"x-request-id", request_id_}, {"request-id", request_id_}},
      std::move(body));
}

void Delivery::fail(const ApiError& error, std::string in_stream) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(over_, true)) return;
  status_ = error.status(api_);
  if (begun_) {
    // The status went out before; what can be said is said where the client looks for it.
    reply_->write(streams_ ? std::move(in_stream) : to_text(error.body(api_)));
    reply_->end();
    return;
  }
  HttpHeaders headers = error.headers();
  headers.emplace_back("x-request-id", request_id_);
  headers.emplace_back("request-id", request_id_);
  reply_->send(status_, std::move(headers), to_text(error.body(api_)));
}

bool Delivery::complete(std::size_t index, Json choice, const Usage& usage) {
  const std::lock_guard lock(mutex_);
  HADAL_CHECK(missing_ > 0);
  choices_[index] = std::move(choice);
  usage_.prompt_tokens += usage.prompt_tokens;
  usage_.cached_tokens += usage.cached_tokens;
  usage_.completion_tokens += usage.completion_tokens;
  usage_.reasoning_tokens += usage.reasoning_tokens;
  return --missing_ == 0;
}

Json Delivery::choices() const {
  const std::lock_guard lock(mutex_);
  return choices_;
}

Usage Delivery::usage() const {
  const std::lock_guard lock(mutex_);
  return usage_;
}

bool Delivery::over() const {
  const std::lock_guard lock(mutex_);
  return over_;
}

int Delivery::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

Answer::Answer(AnswerSetup setup)
    : setup_(std::move(setup)),
      request_(*setup_.request),
      id_(setup_.turn_id),
      model_(setup_.model),
      created_(setup_.created) {}

std::string Answer::call_id(int index) const {
  return fmt::format("{}_{}{:02}", request_.api == Api::messages ? "toolu" : "call", id_, index);
}

std::string Answer::event_text(std::string_view name, const Json& data) {
  const std::string text = to_text(data);
  return name.empty() ? fmt::format("data: {}\n\n", text)
                      : fmt::format("event: {}\ndata: {}\n\n", name, text);
}

void Answer::fail(const ApiError& error) {
  delivery().fail(error, streams() ? error_in_stream(error) : "");
}

std::string Answer::error_in_stream(const ApiError& error) {
  return event_text("", error.stream_body(request_.api));
}

void Answer::keep_alive() {
  delivery().write(streams() ? ": keep-alive\n\n" : "\n");  // white space before JSON is JSON
}

std::unique_ptr<Answer> make_answer(AnswerSetup setup) {
  const Api api = setup.request->api;
  const auto make = api == Api::messages      ? make_messages_answer
                    : api == Api::responses   ? make_responses_answer
                    : api == Api::completions ? make_completion_answer
                                              : make_chat_answer;
  return make(std::move(setup));
}

}  // namespace hadal::serve
