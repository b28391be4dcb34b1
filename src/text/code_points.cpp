#include "text/code_points.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "text/json_value.h"
#include "text/utf8.h"

namespace hadal {
namespace {

constexpr char32_t kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;

}  // namespace

void append_utf8(std::string& out, char32_t c) {
  const auto byte = [&](char32_t bits) { out += static_cast<char>(static_cast<unsigned char>(bits)); };
  const auto tail = [&](int shift) { byte(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    byte(c);
  } else if (c < 0x800) {
    byte(0xC0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    byte(0xE0 | c >> 12);
    tail(6);
    tail(0);
  } else {
    byte(0xF0 | c >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

void CodePoints::add(char32_t first, char32_t last) {
  if (first < kFirstSurrogate && last > kLastSurrogate) {
    add(first, kFirstSurrogate - 1);
    return add(kLastSurrogate + 1, last);
  }
  if (first >= kFirstSurrogate && first <= kLastSurrogate) first = kLastSurrogate + 1;
  if (last >= kFirstSurrogate && last <= kLastSurrogate) last = kFirstSurrogate - 1;
  if (first > last) return;
  ranges_.emplace_back(first, last);
  std::sort(ranges_.begin(), ranges_.end());
  std::size_t kept = 0;
  for (std::size_t i = 1; i < ranges_.size(); ++i) {
    if (ranges_[i].first <= ranges_[kept].second + 1) {
      ranges_[kept].second = std::max(ranges_[kept].second, ranges_[i].second);
    } else {
      ranges_[++kept] = ranges_[i];
    }
  }
  ranges_.resize(kept + 1);
}

void CodePoints::add(const CodePoints& other) {
  for (const auto& range : other.ranges_) add(range.first, range.second);
}

CodePoints CodePoints::without(const CodePoints& other) const {
  CodePoints left;
  for (const auto& range : ranges_) {
    char32_t from = range.first;
    for (const auto& hole : other.ranges_) {
      if (hole.second < from || hole.first > range.second) continue;
      if (hole.first > from) left.add(from, hole.first - 1);
      from = hole.second + 1;
    }
    if (from <= range.second) left.add(from, range.second);
  }
  return left;
}

bool CodePoints::contains(char32_t c) const {
  return std::any_of(ranges_.begin(), ranges_.end(),
                     [c](const auto& range) { return range.first <= c && c <= range.second; });
}

std::u32string code_points_of(std::string_view utf8) {
  std::u32string text;
  while (!utf8.empty()) {
    const Utf8Lead lead = utf8_lead(utf8);
    char32_t c = 0xFFFD;
    if (lead.kind == Utf8Lead::Kind::character) {
      const auto first = static_cast<unsigned char>(utf8[0]);
      c = lead.length == 1 ? first : first & (0xFFU >> (lead.length + 1));
      for (std::size_t i = 1; i < lead.length; ++i)
        c = c << 6 | (static_cast<unsigned char>(utf8[i]) & 0x3FU);
    }
    text += c;
    utf8.remove_prefix(lead.length);
  }
  return text;
}

TextExprs::TextExprs(GrammarBuilder& builder, Spelling spelling, const std::vector<std::string>& avoided)
    : builder_(builder), spelling_(spelling) {
  for (const std::string& text : avoided) {
    avoided_.push_back(code_points_of(text));
    beginnings_.add(avoided_.back().front(), avoided_.back().front());
  }
}

// A range of characters whose encodings have one length n is divided until, in each part, the first and last
// differ in some byte and all bytes behind it run over 80..BF: then every byte is a range of its own.
ExprId TextExprs::utf8(const CodePoints& set) {
  std::vector<ExprId> parts;
  ByteSet single;
  std::vector<std::pair<char32_t, char32_t>> work = set.ranges();
  while (!work.empty()) {
    const char32_t first = work.back().first, last = work.back().second;
    work.pop_back();
    bool divided = false;
    const auto divide_after = [&](char32_t at) {
      if (divided || first > at || last <= at) return;
      work.emplace_back(first, at);
      work.emplace_back(at + 1, last);
      divided = true;
    };
    for (const char32_t longest : {0x7FU, 0x7FFU, 0xFFFFU}) divide_after(longest);
    if (last < 0x80) {
      for (char32_t c = first; c <= last; ++c) single.set(c);
      continue;
    }
    const int n = last < 0x800 ? 2 : last < 0x10000 ? 3 : 4;
    for (int i = 1; i < n; ++i) {
      const char32_t mask = (char32_t{1} << (6 * i)) - 1;
      if ((first & ~mask) == (last & ~mask)) continue;
      if ((first & mask) != 0) divide_after(first | mask);
      if ((last & mask) != mask) divide_after((last & ~mask) - 1);
    }
    if (divided) continue;
    std::string low, high;
    append_utf8(low, first);
    append_utf8(high, last);
    ExprId part = Grammar::kEmpty;
    for (std::size_t i = low.size(); i-- > 0;) {
      part = builder_.sequence(
          {builder_.byte_range(static_cast<unsigned char>(low[i]), static_cast<unsigned char>(high[i])),
           part});
    }
    parts.push_back(part);
  }
  if (single.any()) parts.push_back(builder_.bytes(single));
  return builder_.choice(parts);
}

// What no JSON string holds without a backslash.
CodePoints TextExprs::must_be_escaped() const {
  if (spelling_ == Spelling::raw) return {};
  CodePoints set(0, 0x1F);
  set.add('"', '"');
  set.add('\\', '\\');
  return set;
}

// Any escape of JSON, surrogates in pairs.
ExprId TextExprs::any_escape() {
  const auto one_of = [&](std::string_view bytes) {
    ByteSet set;
    for (const char c : bytes) set.set(static_cast<unsigned char>(c));
    return builder_.bytes(set);
  };
  const ExprId hex = one_of("0123456789abcdefABCDEF"), d = one_of("dD");
  const ExprId plain = builder_.choice({builder_.sequence({one_of("0123456789abcefABCEF"), hex, hex, hex}),
                                        builder_.sequence({d, one_of("01234567"), hex, hex})});
  const ExprId pair = builder_.sequence(
      {d, one_of("89abAB"), hex, hex, builder_.literal("\\u"), d, one_of("cdefCDEF"), hex, hex});
  return builder_.sequence(
      {builder_.byte('\\'),
       builder_.choice(
           {one_of("\"\\/bfnrt"), builder_.sequence({builder_.byte('u'), builder_.choice({plain, pair})})})});
}

ExprId TextExprs::character(const CodePoints& set) {
  if (spelling_ == Spelling::raw) return utf8(set.without(beginnings_));
  CodePoints escaped = must_be_escaped();
  escaped.add(beginnings_);
  std::vector<ExprId> ways = {utf8(set.without(escaped))};
  // A set that is all there is may be written with any escape; others with those that they need.
  if (set.ranges() == CodePoints::all().ranges()) {
    ways.push_back(any_escape());
    return builder_.choice(ways);
  }
  for (const auto& range : escaped.ranges()) {
    for (char32_t c = range.first; c <= range.second; ++c) {
      if (!set.contains(c)) continue;
      std::string text;
      append_json_escaped(text, std::string(1, static_cast<char>(c)));
      if (text.front() != '\\') text = fmt::format("\\u{:04x}", static_cast<unsigned>(c));
      ways.push_back(builder_.literal(text));
    }
  }
  return builder_.choice(ways);
}

ExprId TextExprs::literal(std::string_view utf8) {
  if (spelling_ == Spelling::raw) return builder_.literal(utf8);
  std::string escaped;
  append_json_escaped(escaped, utf8);
  return builder_.literal(escaped);
}

// The automaton of Aho and Corasick: a state is the longest end of the text that is the beginning of
// something avoided, and the step that would complete it is left out.
ExprId TextExprs::free_text() {
  if (free_text_ != Grammar::kNever) return free_text_;
  std::map<std::u32string, ExprId> states;
  states.emplace(U"", builder_.reserve());
  CodePoints letters;
  for (const std::u32string& text : avoided_) {
    for (std::size_t n = 1; n < text.size(); ++n) {
      if (states.find(text.substr(0, n)) == states.end())
        states.emplace(text.substr(0, n), builder_.reserve());
    }
    for (const char32_t c : text) letters.add(c, c);
  }
  const ExprId start = states.at(U"");
  std::vector<ExprId> others = {utf8(CodePoints::all().without(letters).without(must_be_escaped()))};
  if (spelling_ == Spelling::json) others.push_back(any_escape());
  const ExprId other = builder_.sequence({builder_.choice(others), start});
  for (const auto& state : states) {
    std::map<ExprId, CodePoints> steps;
    for (const auto& range : letters.ranges()) {
      for (char32_t c = range.first; c <= range.second; ++c) {
        std::u32string now = state.first + c;
        const auto ends_in = [&](const std::u32string& text) {
          return now.size() >= text.size() && now.compare(now.size() - text.size(), text.size(), text) == 0;
        };
        if (std::any_of(avoided_.begin(), avoided_.end(), ends_in)) continue;
        auto to = states.find(now);
        for (; to == states.end(); to = states.find(now)) now.erase(0, 1);
        steps[to->second].add(c, c);
      }
    }
    std::vector<ExprId> ways = {Grammar::kEmpty, other};
    for (const auto& step : steps) ways.push_back(builder_.sequence({utf8(step.second), step.first}));
    builder_.define(state.second, builder_.choice(ways));
  }
  return free_text_ = start;
}

ExprId TextExprs::text_other_than(const std::vector<std::string>& texts) {
  std::map<std::u32string, ExprId> states;  // the beginnings of these texts, and of nothing else
  states.emplace(U"", builder_.reserve());
  std::vector<std::u32string> excluded;
  for (const std::string& text : texts) {
    excluded.push_back(code_points_of(text));
    for (std::size_t n = 1; n <= excluded.back().size(); ++n) {
      const std::u32string beginning = excluded.back().substr(0, n);
      if (states.find(beginning) == states.end()) states.emplace(beginning, builder_.reserve());
    }
  }
  std::sort(excluded.begin(), excluded.end());
  const CodePoints plain = CodePoints::all().without(must_be_escaped()).without(beginnings_);
  const ExprId anything = builder_.repeat(utf8(plain), 0);
  std::map<std::u32string, CodePoints> followers;
  for (const auto& state : states) {
    if (!state.first.empty())
      followers[state.first.substr(0, state.first.size() - 1)].add(state.first.back(), state.first.back());
  }
  for (const auto& state : states) {
    std::vector<ExprId> ways;
    if (!std::binary_search(excluded.begin(), excluded.end(), state.first)) ways.push_back(Grammar::kEmpty);
    const CodePoints& known = followers[state.first];
    ways.push_back(builder_.sequence({utf8(plain.without(known)), anything}));
    for (const auto& range : known.ranges()) {
      for (char32_t c = range.first; c <= range.second; ++c) {
        if (plain.contains(c)) ways.push_back(builder_.sequence({utf8({c, c}), states.at(state.first + c)}));
      }
    }
    builder_.define(state.second, builder_.choice(ways));
  }
  return states.at(U"");
}

}  // namespace hadal
