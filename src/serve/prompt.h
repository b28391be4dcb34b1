// From a request to the tokens that the model reads, and to how its output is to be understood.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <hadal/tokenizer.h>

#include "serve/replay_store.h"
#include "serve/request.h"
#include "text/answer_grammar.h"
#include "text/chat_dialect.h"
#include "text/output_parser.h"

namespace hadal::serve {

struct Prompt {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> boundaries;  // lengths worth a snapshot, ascending
  OutputParserOptions parser;
  std::optional<AnswerRules> rules;   // what the answer is held to
  bool thinking = false;              // the turn begins after <think>
  std::vector<std::int32_t> opening;  // tokens of the turn that the prompt ends with
  Sha256 transcript{};                // of the messages
  std::string text;                   // of the prompt, sampled turns decoded; only when asked for
};

struct PromptContext {
  const Tokenizer& tokenizer;
  const ChatDialect& dialect;
  const ReplayStore* replay;  // null: none
  std::string name_space;
};

// Errors: invalid_argument.
Result<Prompt> chat_prompt(const Request& request, const PromptContext& context, bool with_text = false);
// Of one of the request's prompts.
Result<Prompt> completion_prompt(const Request& request, const Request::Text& text,
                                 const PromptContext& context);

}  // namespace hadal::serve
