// JSON as expressions of a grammar: values of each type, and the white space that is left to the model.
//
// White space may stand where the model was trained to put it, and nowhere without end: one blank or a line
// break with its indentation between members, a blank after a colon.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text/code_points.h"
#include "text/grammar.h"

namespace hadal {

class JsonGrammar {
 public:
  JsonGrammar(GrammarBuilder& builder, const std::vector<std::string>& avoided);

  GrammarBuilder& builder() { return builder_; }
  TextExprs& characters() { return characters_; }

  ExprId quoted(ExprId content);  // a string of this content, spelt for JSON
  ExprId string() { return string_; }
  ExprId number();
  ExprId integer();
  // Whole numbers and, unless only those are wanted, fractions from least to most; bounds that are missing or
  // have more than 18 digits are those of 18 digits. `above` and `below`: the bounds themselves are excluded.
  ExprId integers(std::optional<std::int64_t> least, std::optional<std::int64_t> most);
  ExprId numbers(std::optional<std::int64_t> least, bool above, std::optional<std::int64_t> most, bool below);
  ExprId array(ExprId items, std::uint32_t least, std::uint32_t most);
  ExprId object() { return object_; }  // of any members
  ExprId array() { return array_; }
  ExprId value() { return value_; }

  ExprId space() { return space_; }  // before a bracket closes, after one opens
  ExprId comma() { return comma_; }
  ExprId colon() { return colon_; }

 private:
  ExprId digits(std::uint32_t least, std::uint32_t most);
  ExprId up_from(std::int64_t least, std::int64_t most);  // 0 <= least <= most, written without a sign
  ExprId same_length(const std::string& least, const std::string& most, std::size_t at, bool above_least,
                     bool below_most);

  GrammarBuilder& builder_;
  TextExprs characters_;
  ExprId space_, comma_, colon_, string_, value_, object_ = 0, array_ = 0;
};

}  // namespace hadal
