// One request and the output of the model that is given with it, through everything of the server but sockets
// and scheduler: JSON to Request to Prompt, then the output, token by token, through Turn to the bytes of the
// answer.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/tokenizer.h>

#include "serve/prompt.h"
#include "serve/request.h"
#include "serve/turn.h"

namespace hadal::test {

struct Rehearsed {
  int status = 0;
  std::string prompt;  // its text
  std::string answer;  // the body of the HTTP answer; of a stream, all events
  serve::TurnReport report;
};

class Rehearsal {
 public:
  Rehearsal(Tokenizer tokenizer, const ChatDialect& dialect)
      : tokenizer_(std::move(tokenizer)),
        dialect_(dialect),
        eos_(tokenizer_.id_of(dialect.eos)),
        user_(tokenizer_.id_of(dialect.user)) {}

  // The output ends with `tokens`, or with EOS among them; `max_tokens` of the request is heeded.
  Rehearsed run(serve::Api api, std::string_view body, std::span<const std::int32_t> tokens) const;

  // The same in two steps, when many outputs follow one request.
  struct Part {
    serve::Request request;
    serve::Prompt prompt;
  };
  serve::ApiResult<Part> read(serve::Api api, std::string_view body, bool with_text) const;
  Rehearsed answer(const Part& part, std::span<const std::int32_t> tokens) const;

  const Tokenizer& tokenizer() const { return tokenizer_; }
  std::int32_t eos() const { return eos_.value_or(0); }

 private:
  GenerationEnd hear(serve::Turn& turn, std::span<const std::int32_t> tokens, std::int64_t max_tokens) const;

  Tokenizer tokenizer_;
  const ChatDialect& dialect_;
  std::optional<std::int32_t> eos_, user_;
};

}  // namespace hadal::test
