// A language over bytes and special tokens: what an answer may be. A graph of expressions, which may lead
// back to themselves (a tree is a node of trees), so the languages are the context-free ones.
//
// GrammarMachine (grammar_machine.h) reads it a byte at a time. Two properties make that safe, and
// GrammarBuilder::finish() sees to both: every expression that is left can be completed, so whatever was read
// can be brought to an end; and a repeated expression that may be empty need not be repeated.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <hadal/error.h>

namespace hadal {

using ExprId = std::uint32_t;
using ByteSet = std::bitset<256>;

struct GrammarExpr {
  enum class Kind : std::uint8_t {
    empty,     // nothing
    never,     // no text at all
    bytes,     // one byte of sets[a]
    literal,   // literals[a], not empty
    token,     // the special token with id a
    sequence,  // a, then b
    choice,    // one of the b alternatives from a on
    repeat,    // a, b to c times (kUnlimited: any number)
    frame,     // a. What a token may be inside a is worth remembering apart from what stands around it
    // Of the machine alone:
    leave,    // the end of a frame
    end,      // the end of the text
    unknown,  // what stands around a frame when that is looked at alone
  };
  Kind kind = Kind::empty;
  std::uint32_t a = 0, b = 0, c = 0;
};

struct Grammar {
  static constexpr std::uint32_t kUnlimited = UINT32_MAX;
  // Expressions that every grammar has, at these places.
  static constexpr ExprId kEmpty = 0, kNever = 1, kLeave = 2, kEnd = 3, kUnknown = 4;

  std::vector<GrammarExpr> exprs;
  std::vector<ExprId> alternatives;
  std::vector<ByteSet> sets;
  std::vector<std::string> literals;
  ExprId root = kNever;
  // Bytes that no expression tells apart have one class.
  std::array<std::uint8_t, 256> class_of{};
  std::uint32_t n_classes = 0;

  std::size_t bytes() const;  // about what it takes in memory
};

struct GrammarLimits {
  std::size_t max_exprs = 200'000;
  std::size_t max_literal_bytes = std::size_t{1} << 20;
};

class GrammarBuilder {
 public:
  explicit GrammarBuilder(const GrammarLimits& limits = {});

  ExprId bytes(const ByteSet& set);
  ExprId byte(unsigned char c);
  ExprId byte_range(unsigned char first, unsigned char last);
  ExprId literal(std::string_view text);
  ExprId token(std::int32_t id);
  ExprId sequence(std::initializer_list<ExprId> parts);
  ExprId choice(const std::vector<ExprId>& alternatives);
  ExprId optional(ExprId inner) { return choice({inner, Grammar::kEmpty}); }
  ExprId repeat(ExprId inner, std::uint32_t least, std::uint32_t most = Grammar::kUnlimited);
  ExprId frame(ExprId inner);
  // An expression to be defined later: how one comes to contain itself.
  ExprId reserve();
  void define(ExprId reserved, ExprId meaning);

  // Errors: resource_exhausted (beyond the limits), invalid_argument (no text at all matches).
  Result<Grammar> finish(ExprId root);

 private:
  ExprId add(GrammarExpr expr);
  void prune();
  void find_classes();

  GrammarLimits limits_;
  Grammar grammar_;
  std::unordered_map<ByteSet, std::uint32_t> set_ids_;
  std::size_t literal_bytes_ = 0;
  bool full_ = false;
};

}  // namespace hadal
