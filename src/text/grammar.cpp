#include "text/grammar.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace hadal {

std::size_t Grammar::bytes() const {
  std::size_t total = exprs.size() * sizeof(GrammarExpr) + alternatives.size() * sizeof(ExprId) +
                      sets.size() * sizeof(ByteSet);
  for (const std::string& literal : literals) total += sizeof(std::string) + literal.size();
  return total;
}

GrammarBuilder::GrammarBuilder(const GrammarLimits& limits) : limits_(limits) {
  using Kind = GrammarExpr::Kind;
  for (const Kind kind : {Kind::empty, Kind::never, Kind::leave, Kind::end, Kind::unknown})
    grammar_.exprs.push_back({kind});
}

// Beyond the limit nothing is added any more; finish() tells.
ExprId GrammarBuilder::add(GrammarExpr expr) {
  full_ = full_ || grammar_.exprs.size() >= limits_.max_exprs || literal_bytes_ > limits_.max_literal_bytes;
  if (full_) return Grammar::kNever;
  grammar_.exprs.push_back(expr);
  return static_cast<ExprId>(grammar_.exprs.size() - 1);
}

ExprId GrammarBuilder::bytes(const ByteSet& set) {
  if (set.none()) return Grammar::kNever;
  const auto [at, is_new] = set_ids_.emplace(set, static_cast<std::uint32_t>(grammar_.sets.size()));
  if (is_new) grammar_.sets.push_back(set);
  return add({GrammarExpr::Kind::bytes, at->second});
}

ExprId GrammarBuilder::byte(unsigned char c) {
  return bytes(ByteSet().set(c));
}

ExprId GrammarBuilder::byte_range(unsigned char first, unsigned char last) {
  ByteSet set;
  for (unsigned c = first; c <= last; ++c) set.set(c);
  return bytes(set);
}

ExprId GrammarBuilder::literal(std::string_view text) {
  if (text.empty()) return Grammar::kEmpty;
  literal_bytes_ += text.size();
  const ExprId id = add({GrammarExpr::Kind::literal, static_cast<std::uint32_t>(grammar_.literals.size())});
  if (id != Grammar::kNever) grammar_.literals.emplace_back(text);
  return id;
}

ExprId GrammarBuilder::token(std::int32_t id) {
  return add({GrammarExpr::Kind::token, static_cast<std::uint32_t>(id)});
}

ExprId GrammarBuilder::sequence(std::initializer_list<ExprId> parts) {
  ExprId all = Grammar::kEmpty;
  for (const ExprId* part = parts.end(); part-- != parts.begin();) {
    if (*part == Grammar::kEmpty) continue;
    all = all == Grammar::kEmpty ? *part : add({GrammarExpr::Kind::sequence, *part, all});
  }
  return all;
}

ExprId GrammarBuilder::choice(const std::vector<ExprId>& alternatives) {
  if (alternatives.empty()) return Grammar::kNever;
  if (alternatives.size() == 1) return alternatives.front();
  const auto begin = static_cast<std::uint32_t>(grammar_.alternatives.size());
  const ExprId id = add({GrammarExpr::Kind::choice, begin, static_cast<std::uint32_t>(alternatives.size())});
  if (id != Grammar::kNever)
    grammar_.alternatives.insert(grammar_.alternatives.end(), alternatives.begin(), alternatives.end());
  return id;
}

ExprId GrammarBuilder::repeat(ExprId inner, std::uint32_t least, std::uint32_t most) {
  if (least > most) return Grammar::kNever;
  if (most == 0 || inner == Grammar::kEmpty) return Grammar::kEmpty;
  if (least == 1 && most == 1) return inner;
  return add({GrammarExpr::Kind::repeat, inner, least, most});
}

ExprId GrammarBuilder::frame(ExprId inner) {
  return add({GrammarExpr::Kind::frame, inner});
}

ExprId GrammarBuilder::reserve() {
  const auto at = static_cast<std::uint32_t>(grammar_.alternatives.size());
  const ExprId id = add({GrammarExpr::Kind::choice, at, 1});
  if (id != Grammar::kNever) grammar_.alternatives.push_back(Grammar::kNever);
  return id;
}

void GrammarBuilder::define(ExprId reserved, ExprId meaning) {
  if (reserved != Grammar::kNever) grammar_.alternatives[grammar_.exprs[reserved].a] = meaning;
}

// Which expressions can be completed, and which may be empty, are the least solutions of equations over the
// graph: start from "none" and repeat until nothing is added. What cannot be completed goes, wherever there
// is a choice to do without it.
void GrammarBuilder::prune() {
  using Kind = GrammarExpr::Kind;
  auto& exprs = grammar_.exprs;
  std::vector<char> completes(exprs.size(), 0), may_be_empty(exprs.size(), 0);
  bool forwards =
      false;  // in turns, since what is built first refers to what is built last and the other way
  for (bool changed = true; changed;) {
    changed = false;
    forwards = !forwards;
    for (std::size_t k = 0; k < exprs.size(); ++k) {
      const std::size_t i = forwards ? k : exprs.size() - 1 - k;
      const GrammarExpr& e = exprs[i];
      bool can = true, nothing = false;
      switch (e.kind) {
        case Kind::never:
          can = false;
          break;
        case Kind::empty:
          nothing = true;
          break;
        case Kind::sequence:
          can = completes[e.a] != 0 && completes[e.b] != 0;
          nothing = may_be_empty[e.a] != 0 && may_be_empty[e.b] != 0;
          break;
        case Kind::choice:
          can = false;
          for (std::uint32_t j = e.a; j < e.a + e.b; ++j) {
            can = can || completes[grammar_.alternatives[j]] != 0;
            nothing = nothing || may_be_empty[grammar_.alternatives[j]] != 0;
          }
          break;
        case Kind::repeat:
          can = e.b == 0 || completes[e.a] != 0;
          nothing = e.b == 0 || may_be_empty[e.a] != 0;
          break;
        case Kind::frame:
          can = completes[e.a] != 0;
          nothing = may_be_empty[e.a] != 0;
          break;
        default:
          break;
      }
      if (can != (completes[i] != 0) || nothing != (may_be_empty[i] != 0)) changed = true;
      completes[i] = static_cast<char>(can);
      may_be_empty[i] = static_cast<char>(nothing);
    }
  }
  for (std::size_t i = 0; i < exprs.size(); ++i) {
    GrammarExpr& e = exprs[i];
    if (completes[i] == 0) {
      e = {Kind::never};
    } else if (e.kind == Kind::repeat && completes[e.a] == 0) {
      e = {Kind::empty};
    } else if (e.kind == Kind::repeat && may_be_empty[e.a] != 0) {
      e.b = 0;
    } else if (e.kind == Kind::choice) {
      const auto begin = grammar_.alternatives.begin() + e.a;
      const auto kept =
          std::remove_if(begin, begin + e.b, [&](ExprId alternative) { return completes[alternative] == 0; });
      e.b = static_cast<std::uint32_t>(kept - begin);
    }
  }
}

// Splits the bytes by one set after another.
void GrammarBuilder::find_classes() {
  std::array<std::uint32_t, 256> of{};
  std::uint32_t n = 1;
  const auto split = [&](const auto& contains) {
    std::unordered_map<std::uint32_t, std::uint32_t> inside;  // class -> that of its bytes in the set
    std::array<std::uint32_t, 256> sizes{}, found{};
    for (const std::uint32_t c : of) ++sizes[c];
    for (unsigned b = 0; b < 256; ++b) found[of[b]] += contains(b) ? 1 : 0;
    for (unsigned b = 0; b < 256; ++b) {
      const std::uint32_t c = of[b];
      if (!contains(b) || found[c] == sizes[c]) continue;
      const auto [at, is_new] = inside.emplace(c, n);
      if (is_new) ++n;
      of[b] = at->second;
    }
  };
  for (const ByteSet& set : grammar_.sets) split([&](unsigned b) { return set[b]; });
  ByteSet in_literals;
  for (const std::string& text : grammar_.literals) {
    for (const char c : text) in_literals.set(static_cast<unsigned char>(c));
  }
  for (unsigned one = 0; one < 256; ++one) {
    if (in_literals[one]) split([&](unsigned b) { return b == one; });
  }
  for (unsigned b = 0; b < 256; ++b) grammar_.class_of[b] = static_cast<std::uint8_t>(of[b]);
  grammar_.n_classes = n;
}

Result<Grammar> GrammarBuilder::finish(ExprId root) {
  if (full_) {
    return fail(ErrorCode::resource_exhausted,
                fmt::format("it makes a grammar of more than {} states or {} bytes of fixed text",
                            limits_.max_exprs, limits_.max_literal_bytes));
  }
  prune();
  if (grammar_.exprs[root].kind == GrammarExpr::Kind::never)
    return fail(ErrorCode::invalid_argument, "nothing that is finite can follow it");
  find_classes();
  grammar_.root = root;
  return std::move(grammar_);
}

}  // namespace hadal
