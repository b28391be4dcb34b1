// The answer to one request on its way to the client: what turns of the model say, in the words of an API.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/engine.h>

#include "serve/api_error.h"
#include "serve/http_server.h"
#include "serve/request.h"
#include "text/output_parser.h"

namespace hadal::serve {

struct Usage {
  std::int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0, reasoning_tokens = 0;
};

enum class TurnFinish : std::uint8_t { stop, stop_sequence, tool_calls, length };

// A sampled token as logprobs report it.
struct TokenReport {
  std::string bytes;
  double logprob = 0;
  std::vector<std::pair<std::string, double>> top;
};

struct TurnResult {
  TurnFinish finish = TurnFinish::stop;
  std::string stop_sequence;
  Usage usage;
  std::string content, reasoning;
  std::vector<ToolCall> calls;  // complete ones, with the ids that the client got
  std::vector<TokenReport> logprobs;
};

// The HTTP reply, which the choices of a request share. From any thread; behind the end, or an error, nothing
// more is sent.
class Delivery {
 public:
  Delivery(std::shared_ptr<HttpReply> reply, std::string request_id, Api api, bool streams,
           std::size_t choices);

  bool streams() const { return streams_; }
  void write(std::string piece);  // of a stream, or a blank before the whole
  void send(std::string body);    // the whole, instead of a stream
  void end();
  // `in_stream`: how the API says it when the status went out before.
  void fail(const ApiError& error, std::string in_stream);

  // Puts down what choice `index` came to; whether it was the last one that was missing.
  bool complete(std::size_t index, Json choice, const Usage& usage);
  Json choices() const;  // when all are there, in their order
  Usage usage() const;   // of all together

  bool over() const;
  int status() const;

 private:
  void begin(std::string_view type);

  const std::shared_ptr<HttpReply> reply_;
  const std::string request_id_;
  const Api api_;
  const bool streams_;

  mutable std::mutex mutex_;
  std::vector<Json> choices_;
  std::size_t missing_;
  Usage usage_;
  bool begun_ = false, over_ = false;
  int status_ = 200;
};

struct AnswerSetup {
  std::shared_ptr<const Request> request;
  std::string turn_id;
  std::string response_id;   // the turn's, or if there are several choices the first one's
  std::string model;         // as the client called it
  std::int64_t created = 0;  // seconds of the epoch
  std::shared_ptr<Delivery> delivery;
  std::size_t choice = 0;
};

// One choice. Calls come one at a time: start(), any number of event(), then finish() or fail(). keep_alive()
// any time before the end.
class Answer {
 public:
  explicit Answer(AnswerSetup setup);
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;
  virtual ~Answer() = default;

  virtual void start(const Usage& usage) = 0;
  // All but `finish`. `reports`: of the tokens since the last event, when they were asked for.
  virtual void event(const OutputEvent& event, std::span<const TokenReport> reports) = 0;
  virtual void finish(const TurnResult& result) = 0;
  void fail(const ApiError& error);
  virtual void keep_alive();

  // The id of call `index`, as the client knows it.
  std::string call_id(int index) const;
  bool over() const { return setup_.delivery->over(); }  // nobody will hear any more of it
  int status() const { return setup_.delivery->status(); }

 protected:
  // To the client as an event of a stream; `name` empty: only data.
  static std::string event_text(std::string_view name, const Json& data);
  void send_event(std::string_view name, const Json& data) { delivery().write(event_text(name, data)); }
  bool streams() const { return setup_.delivery->streams(); }
  Delivery& delivery() const { return *setup_.delivery; }
  virtual std::string error_in_stream(const ApiError& error);

  const AnswerSetup setup_;
  const Request& request_;
  const std::string& id_;     // of the turn
  const std::string& model_;  // as the client called it
  const std::int64_t& created_;
};

std::unique_ptr<Answer> make_chat_answer(AnswerSetup setup);
std::unique_ptr<Answer> make_completion_answer(AnswerSetup setup);
std::unique_ptr<Answer> make_responses_answer(AnswerSetup setup);
std::unique_ptr<Answer> make_messages_answer(AnswerSetup setup);
std::unique_ptr<Answer> make_answer(AnswerSetup setup);

}  // namespace hadal::serve
