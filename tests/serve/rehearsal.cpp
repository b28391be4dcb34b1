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
  auto prompt = api == Api::completions ? completion_prompt(*request, context)
                                        : chat_prompt(*request, context, with_text);
  if (!prompt) return tl::unexpected(from_error(prompt.error()));
  return Part{std::move(*request), std::move(*prompt)};
}

Rehearsed Rehearsal::answer(const Part& part, std::span<const std::int32_t> tokens) const {
  Rehearsed rehearsed;
  const auto reply = std::make_shared<RecordedReply>();
  Turn::Setup setup{
      .request = part.request,
      .prompt = part.prompt,
      .id = "0123456789abcdef01234567",
      .name_space = "",
      .tokenizer = tokenizer_,
      .dialect = &dialect_,
      .replay = nullptr,
      .answer = make_answer(part.request, "0123456789abcdef01234567", part.request.model, reply, "req"),
      .done = [&rehearsed](const TurnReport& report) { rehearsed.report = report; }};
  Turn turn(std::move(setup));
  turn.started(0);
  GenerationEnd end;
  end.finish = FinishReason::stop;
  const auto most = static_cast<std::size_t>(part.request.max_tokens);
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
    if (most > 0 && end.tokens.size() == most) {
      end.finish = FinishReason::length;
      break;
    }
  }
  turn.ended(std::move(end));
  rehearsed.status = reply->status();
  rehearsed.answer = reply->take();
  rehearsed.prompt = part.prompt.text;
  return rehearsed;
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
