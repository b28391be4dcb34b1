#include "serve/answer.h"

#include <chrono>

#include <fmt/format.h>

namespace hadal::serve {

Answer::Answer(const Request& request, std::string turn_id, std::string model,
               std::shared_ptr<HttpReply> reply, std::string request_id)
    : request_(request),
      id_(std::move(turn_id)),
      model_(std::move(model)),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      reply_(std::move(reply)),
      request_id_(std::move(request_id)) {}

std::string Answer::call_id(int index) const {
  return fmt::format("{}_{}{:02}", request_.api == Api::messages ? "toolu" : "call", id_, index);
}

void Answer::begin(std::string_view type) {
  if (begun_) return;
  begun_ = true;
  reply_->begin(200, {{"Content-Type", std::string(type)},
                      {"Cache-Control", "no-cache"},
                      {"X-Accel-Buffering", "no"},
                      {"x-request-id", request_id_},
                      {"request-id", request_id_}});
}

void Answer::send_text(std::string_view text) {
  begin("text/event-stream; charset=utf-8");
  reply_->write(fmt::format("data: {}\n\n", text));
}

void Answer::send_event(std::string_view name, const Json& data) {
  begin("text/event-stream; charset=utf-8");
  const std::string text = to_text(data);
  reply_->write(name.empty() ? fmt::format("data: {}\n\n", text)
                             : fmt::format("event: {}\ndata: {}\n\n", name, text));
}

void Answer::end_stream() {
  reply_->end();
}

void Answer::send_whole(const Json& body) {
  send_whole(to_text(body));
}

void Answer::send_whole(std::string text) {
  if (begun_) {  // blanks went ahead
    reply_->write(std::move(text));
    reply_->end();
    return;
  }
  begun_ = true;
  reply_->send(
      200, {{"Content-Type", "application/json"}, {"x-request-id", request_id_}, {"request-id", request_id_}},
      std::move(text));
}

void Answer::fail(const ApiError& error) {
  status_ = error.status(request_.api);
  if (begun_) {
    // The status went out before; what can be said is said where the client looks for it.
    if (streams()) {
      fail_in_stream(error);
    } else {
      reply_->write(to_text(error.body(request_.api)));
    }
    reply_->end();
    return;
  }
  begun_ = true;
  HttpHeaders headers = error.headers();
  headers.emplace_back("x-request-id", request_id_);
  headers.emplace_back("request-id", request_id_);
  reply_->send(status_, std::move(headers), to_text(error.body(request_.api)));
}

void Answer::fail_in_stream(const ApiError& error) {
  send_event("", error.stream_body(request_.api));
}

void Answer::keep_alive() {
  if (streams()) {
    begin("text/event-stream; charset=utf-8");
    reply_->write(": keep-alive\n\n");
  } else {
    begin("application/json");
    reply_->write("\n");  // white space before JSON is JSON
  }
}

std::unique_ptr<Answer> make_answer(const Request& request, std::string turn_id, std::string model,
                                    std::shared_ptr<HttpReply> reply, std::string request_id) {
  const auto make = request.api == Api::messages      ? make_messages_answer
                    : request.api == Api::responses   ? make_responses_answer
                    : request.api == Api::completions ? make_completion_answer
                                                      : make_chat_answer;
  return make(request, std::move(turn_id), std::move(model), std::move(reply), std::move(request_id));
}

}  // namespace hadal::serve
