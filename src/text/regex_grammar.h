// Regular expressions of JSON schemas (ECMA-262's, the part that is a regular language) as expressions of a
// grammar: docs/structured_output.md has the table.
#pragma once

#include <string>
#include <string_view>

#include <hadal/error.h>

#include "text/code_points.h"
#include "text/grammar.h"

namespace hadal {

// Texts in which `pattern` occurs, as JSON schema has it: with ^ and $ the whole text. Classes are those of
// which the dialects of regular expressions agree that they match. Errors: unsupported (look-around, back
// references, property classes, an expression of more than kMaxRegexSize characters when its repetitions are
// written out), invalid_argument (not a regular expression); both with the byte at which it is.
inline constexpr std::size_t kMaxRegexSize = 2000;
Result<ExprId> regex_grammar(std::string_view pattern, GrammarBuilder& builder, TextExprs& text);

}  // namespace hadal
