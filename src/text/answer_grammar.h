// What an answer may be, as a grammar: JSON of a schema, calls of tools in DSML with arguments of their
// schemas, text. Reasoning is not part of it: the grammar begins behind it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <hadal/error.h>

#include "text/chat_dialect.h"
#include "text/grammar.h"
#include "text/json_value.h"

namespace hadal {

struct CallableTool {
  std::string name;
  JsonValue parameters;  // the schema of an object
  bool strict = false;
};

struct AnswerRules {
  enum class Body : std::uint8_t {
    none,         // calls alone
    text,         // any text, and calls behind it
    json_object,  // a JSON object, or calls
    json_schema,  // JSON of `schema`, or calls
  };
  Body body = Body::none;
  JsonValue schema;
  bool strict = false;  // `schema` is kept to the letter, or is an error
  std::vector<CallableTool> tools;
  bool many_calls = true;
  bool begins_in_calls = false;  // the prompt has opened the block of calls

  std::string key() const;  // equal for equal rules alone
};

// `dsml`: the token of the marker; where the vocabulary has none, it is written out. Errors: unsupported (a
// strict schema, with tool, path and keyword), resource_exhausted, invalid_argument (no answer follows the
// rules).
Result<Grammar> answer_grammar(const AnswerRules& rules, const ChatDialect& dialect,
                               std::optional<std::int32_t> dsml, const GrammarLimits& limits = {});

}  // namespace hadal
