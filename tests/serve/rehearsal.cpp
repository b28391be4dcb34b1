#include "serve/rehearsal.h"

#include <memory>
#include <utility>

#include "serve/answer.h"
#include "text/json_value.h"

namespace hadal::test {
namespace {

using namespace serve;

class RecordedReply final : public HttpReply {
 public:
  void send(int status, HttpHeaders /*headers*/, std::string body) override {
    status_ = status;
    body_ = std::move(body);
  }
  void begin(int status, HttpHeaders /*headers*/) override { status_ = status; }
  void write(std::string piece) override { body_ += piece; }
  void end() override {}
  void on_close(std::function<void()> /*left*/) override {}

  int status() const { return status_; }
  std::string take() { return std::move(body_); }

 private:
  int status_ = 0;
  std::string body_;
};

ApiResult<Request> read_request(Api api, std::string_view body) {
  const auto json = parse_json(body);
  if (!json) return tl::unexpected(invalid("the body is not valid: " + json.error().message()));
  const RequestLimits limits;
  switch (api) {
    case Api::messages:
      return read_messages_request(*json, limits);
    case Api::responses:
      return read_responses_request(*json, limits);
    case Api::completions:
      return read_completions_request(*json, limits);
    default:
      return read_chat_request(*json, limits);
  }
}

}  // namespace

ApiResult<Rehearsal::Part> Rehearsal::read(Api api, std::string_view body, bool with_text) const {
  auto request = read_request(api, body);
  if (!request) return tl::unexpected(request.error());
  const PromptContext context{tokenizer_, dialect_, nullptr, ""};
  auto prompt = api == Api::completions ? completion_prompt(*request, request->prompts.front(), context)
                                        : chat_prompt(*request, context, with_text);
  if (!prompt) return tl::unexpected(from_error(prompt.error()));
  return Part{std::move(*request), std::move(*prompt)};
}

// Every choice says the same.
Rehearsed Rehearsal::answer(const Part& part, std::span<const std::int32_t> tokens) const {
  Rehearsed rehearsed;
  const auto reply = std::make_shared<RecordedReply>();
  const auto request = std::make_shared<const Request>(part.request);
  const std::string id = "0123456789abcdef01234567";
  const auto delivery =
      std::make_shared<Delivery>(reply, "req", request->api, request->stream, request->choices());
  for (std::size_t choice = 0; choice < request->choices(); ++choice) {
    Turn turn({.request = request,
               .prompt = part.prompt,
               .prompt_tokens = static_cast<std::int64_t>(part.prompt.tokens.size()),
               .id = id,
               .name_space = "",
               .tokenizer = tokenizer_,
               .dialect = &dialect_,
               .replay = nullptr,
               .answer = make_answer({request, id, id, request->model, 0, delivery, choice}),
               .done = [&rehearsed](const TurnReport& report) { rehearsed.report = report; }});
    turn.started(0);
    turn.ended(hear(turn, tokens, request->max_tokens));
  }
  rehearsed.status = reply->status();
  rehearsed.answer = reply->take();
  rehearsed.prompt = part.prompt.text;
  return rehearsed;
}

GenerationEnd Rehearsal::hear(Turn& turn, std::span<const std::int32_t> tokens,
                              std::int64_t max_tokens) const {
  GenerationEnd end;
  end.finish = FinishReason::stop;
  for (const std::int32_t token : tokens) {
    if (token == eos_ || token == user_) {
      end.stop_token = token;
      break;
    }
    end.tokens.push_back(token);
    Sample sample;
    sample.token = token;
    sample.logprob = -0.5;
    if (!turn.token(sample)) break;
    if (max_tokens > 0 && static_cast<std::int64_t>(end.tokens.size()) == max_tokens) {
      end.finish = FinishReason::length;
      break;
    }
  }
  return end;
}

Rehearsed Rehearsal::run(Api api, std::string_view body, std::span<const std::int32_t> tokens) const {
  const auto part = read(api, body, /*with_text=*/true);
  if (part) return answer(*part, tokens);
  Rehearsed refused;
  refused.status = part.error().status(api);
  refused.answer = to_text(part.error().body(api));
  return refused;
}

}  // namespace hadal::test
