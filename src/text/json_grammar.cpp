#include "text/json_grammar.h"

#include <algorithm>

namespace hadal {
namespace {

constexpr std::int64_t kLargest = 999'999'999'999'999'999;  // of 18 digits
constexpr std::uint32_t kMaxDigits = 18;
constexpr std::uint32_t kMaxIndentation = 32;

}  // namespace

JsonGrammar::JsonGrammar(GrammarBuilder& builder, const std::vector<std::string>& avoided)
    : builder_(builder), characters_(builder, Spelling::json, avoided) {
  const ExprId blank = builder.byte(' ');
  space_ = builder.choice(
      {Grammar::kEmpty, blank,
       builder.sequence(
           {builder.byte('\n'), builder.choice({builder.repeat(blank, 0, kMaxIndentation),
                                                builder.repeat(builder.byte('\t'), 1, kMaxIndentation)})})});
  comma_ = builder.sequence({builder.byte(','), space_});
  colon_ = builder.sequence({builder.byte(':'), builder.optional(blank)});
  string_ = quoted(characters_.free_text());
  value_ = builder.reserve();
  array_ = array(value_, 0, Grammar::kUnlimited);
  const ExprId member = builder.sequence({string_, colon_, value_});
  object_ = builder.sequence({builder.literal("{"), space_,
                              builder.optional(builder.sequence(
                                  {member, builder.repeat(builder.sequence({comma_, member}), 0), space_})),
                              builder.literal("}")});
  builder.define(value_, builder.choice({string_, number(), builder.literal("true"), builder.literal("false"),
                                         builder.literal("null"), array_, object_}));
}

// What may come within a string does not depend on what stands around it: see GrammarExpr::Kind::frame.
ExprId JsonGrammar::quoted(ExprId content) {
  return builder_.sequence(
      {builder_.byte('"'), builder_.frame(builder_.sequence({content, builder_.byte('"')}))});
}

ExprId JsonGrammar::digits(std::uint32_t least, std::uint32_t most) {
  return builder_.repeat(builder_.byte_range('0', '9'), least, most);
}

ExprId JsonGrammar::integer() {
  return builder_.sequence(
      {builder_.optional(builder_.byte('-')),
       builder_.choice({builder_.byte('0'),
                        builder_.sequence({builder_.byte_range('1', '9'), digits(0, kMaxDigits - 1)})})});
}

ExprId JsonGrammar::number() {
  ByteSet e, sign;
  e.set('e').set('E');
  sign.set('+').set('-');
  return builder_.sequence(
      {integer(), builder_.optional(builder_.sequence({builder_.byte('.'), digits(1, kMaxDigits)})),
       builder_.optional(
           builder_.sequence({builder_.bytes(e), builder_.optional(builder_.bytes(sign)), digits(1, 2)}))});
}

// Digits from `at` on that make a number of the length of `least` and `most` and between them. So far it is
// equal to the beginning of either unless said otherwise.
ExprId JsonGrammar::same_length(const std::string& least, const std::string& most, std::size_t at,
                                bool above_least, bool below_most) {
  const auto left = static_cast<std::uint32_t>(least.size() - at);
  if (left == 0) return Grammar::kEmpty;
  if (above_least && below_most) return digits(left, left);
  const char low = above_least ? '0' : least[at], high = below_most ? '9' : most[at];
  if (low == high) {
    return builder_.sequence({builder_.byte(static_cast<unsigned char>(low)),
                              same_length(least, most, at + 1, above_least, below_most)});
  }
  std::vector<ExprId> ways;
  char first = low, last = high;
  if (!above_least) {
    ways.push_back(builder_.sequence(
        {builder_.byte(static_cast<unsigned char>(low)), same_length(least, most, at + 1, false, true)}));
    ++first;
  }
  if (!below_most) {
    ways.push_back(builder_.sequence(
        {builder_.byte(static_cast<unsigned char>(high)), same_length(least, most, at + 1, true, false)}));
    --last;
  }
  if (first <= last) {
    ways.push_back(builder_.sequence(
        {builder_.byte_range(static_cast<unsigned char>(first), static_cast<unsigned char>(last)),
         digits(left - 1, left - 1)}));
  }
  return builder_.choice(ways);
}

ExprId JsonGrammar::up_from(std::int64_t least, std::int64_t most) {
  std::vector<ExprId> ways;
  std::int64_t first = least;
  while (first <= most) {
    const std::string low = std::to_string(first);
    const std::int64_t last =
        std::min(most, static_cast<std::int64_t>(std::stoll(std::string(low.size(), '9'))));
    ways.push_back(same_length(low, std::to_string(last), 0, false, false));
    first = last + 1;
  }
  return builder_.choice(ways);
}

ExprId JsonGrammar::integers(std::optional<std::int64_t> least, std::optional<std::int64_t> most) {
  const std::int64_t low = std::clamp(least.value_or(-kLargest), -kLargest, kLargest);
  const std::int64_t high = std::clamp(most.value_or(kLargest), -kLargest, kLargest);
  std::vector<ExprId> ways;
  if (low < 0 && low <= high)
    ways.push_back(builder_.sequence({builder_.byte('-'), up_from(std::max<std::int64_t>(1, -high), -low)}));
  if (high >= 0 && low <= high) ways.push_back(up_from(std::max<std::int64_t>(0, low), high));
  return builder_.choice(ways);
}

// A fraction m.d, with d not zero, lies between m and m + 1; -m.d between -m - 1 and -m.
ExprId JsonGrammar::numbers(std::optional<std::int64_t> least, bool above, std::optional<std::int64_t> most,
                            bool below) {
  const std::int64_t low = std::clamp(least.value_or(-kLargest), -kLargest, kLargest);
  const std::int64_t high = std::clamp(most.value_or(kLargest), -kLargest, kLargest);
  std::vector<ExprId> ways = {integers(low + (above ? 1 : 0), high - (below ? 1 : 0))};
  const ExprId fraction =
      builder_.sequence({builder_.byte('.'), digits(0, 8), builder_.byte_range('1', '9')});
  if (high >= 1 && std::max<std::int64_t>(0, low) <= high - 1)
    ways.push_back(builder_.sequence({up_from(std::max<std::int64_t>(0, low), high - 1), fraction}));
  if (low <= -1 && std::max<std::int64_t>(0, -high) <= -low - 1) {
    ways.push_back(builder_.sequence(
        {builder_.byte('-'), up_from(std::max<std::int64_t>(0, -high), -low - 1), fraction}));
  }
  return builder_.choice(ways);
}

ExprId JsonGrammar::array(ExprId items, std::uint32_t least, std::uint32_t most) {
  if (least > most) return Grammar::kNever;
  ExprId inner = Grammar::kEmpty;
  if (most > 0) {
    const std::uint32_t others = most == Grammar::kUnlimited ? most : most - 1;
    inner = builder_.sequence(
        {items, builder_.repeat(builder_.sequence({comma_, items}), least > 0 ? least - 1 : 0, others),
         space_});
    if (least == 0) inner = builder_.optional(inner);
  }
  return builder_.sequence({builder_.literal("["), space_, inner, builder_.literal("]")});
}

}  // namespace hadal
