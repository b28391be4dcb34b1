// The answer to one request on its way to the client: what a turn of the model says, in the words of an API.
#pragma once

#include <cstdint>
#include <memory>
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

// Calls come one at a time: start(), any number of event(), then finish() or fail(). keep_alive() any time
// before the end.
class Answer {
 public:
  Answer(const Request& request, std::string turn_id, std::string model, std::shared_ptr<HttpReply> reply,
         std::string request_id);
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
  bool begun() const { return begun_; }
  int status() const { return status_; }

 protected:
  // To the client as an event of a stream; `name` empty: only data.
  void send_event(std::string_view name, const Json& data);
  void send_text(std::string_view text);  // the same, of data that is no JSON
  void send_whole(const Json& body);      // instead of a stream
  void send_whole(std::string body);      // the same, as text
  void end_stream();
  bool streams() const { return request_.stream; }
  virtual void fail_in_stream(const ApiError& error);

  const Request request_;
  const std::string id_;     // of the turn
  const std::string model_;  // as the client called it
  const std::int64_t created_;

 private:
  void begin(std::string_view type);

  std::shared_ptr<HttpReply> reply_;
  std::string request_id_;
  bool begun_ = false;
  int status_ = 200;
};

std::unique_ptr<Answer> make_chat_answer(const Request&, std::string turn_id, std::string model,
                                         std::shared_ptr<HttpReply>, std::string request_id);
std::unique_ptr<Answer> make_completion_answer(const Request&, std::string turn_id, std::string model,
                                               std::shared_ptr<HttpReply>, std::string request_id);
std::unique_ptr<Answer> make_responses_answer(const Request&, std::string turn_id, std::string model,
                                              std::shared_ptr<HttpReply>, std::string request_id);
std::unique_ptr<Answer> make_messages_answer(const Request&, std::string turn_id, std::string model,
                                             std::shared_ptr<HttpReply>, std::string request_id);
std::unique_ptr<Answer> make_answer(const Request&, std::string turn_id, std::string model,
                                    std::shared_ptr<HttpReply>, std::string request_id);

}  // namespace hadal::serve
