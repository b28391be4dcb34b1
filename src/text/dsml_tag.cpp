#include "text/dsml_tag.h"

#include <array>

namespace hadal {
namespace {

// Longer before shorter where one begins with the other.
constexpr std::array<std::string_view, 7> kMarkers = {"｜DSML｜", "|DSML|",  "DSML｜", "DSML|",
                                                      "｜DSML|",  "|DSML｜", ""};

struct NamedTag {
  std::string_view text;
  TagName name;
};

constexpr std::array kNames = {
    NamedTag{"tool_calls", TagName::block},    NamedTag{"function_calls", TagName::block},
    NamedTag{"calls", TagName::block},         NamedTag{"invoke", TagName::invoke},
    NamedTag{"parameter", TagName::parameter},
};

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

}  // namespace

std::span<const std::string_view> dsml_markers() {
  return std::span(kMarkers).first(kMarkers.size() - 1);
}

bool is_tag_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

Match match_literal(std::string_view text, std::string_view literal) {
  if (text.size() >= literal.size()) return text.starts_with(literal) ? Match::yes : Match::no;
  return literal.starts_with(text) ? Match::partial : Match::no;
}

Match match_tag(std::string_view text, bool accept_plain, Tag& tag) {
  if (text.size() == 1) return Match::partial;
  tag.closing = text[1] == '/';
  const std::size_t marker_begin = tag.closing ? 2 : 1;
  Match best = Match::no;
  for (const std::string_view marker : kMarkers) {
    if (marker.empty() && !accept_plain) continue;
    const Match marker_match = match_literal(text.substr(marker_begin), marker);
    if (marker_match == Match::partial) best = Match::partial;
    if (marker_match != Match::yes) continue;
    const std::size_t name_begin = marker_begin + marker.size();
    for (const NamedTag& candidate : kNames) {
      const Match name_match = match_literal(text.substr(name_begin), candidate.text);
      if (name_match == Match::partial) best = Match::partial;
      if (name_match != Match::yes) continue;
      tag.marker = marker;
      tag.name = candidate.name;
      tag.length = name_begin + candidate.text.size();
      return Match::yes;
    }
  }
  return best;
}

Match match_misspelt_tag(std::string_view text, Tag& tag) {
  constexpr std::size_t kMaxWord = 34;  // marker and name
  if (text.size() == 1) return Match::partial;
  tag.closing = text[1] == '/';
  const std::size_t begin = tag.closing ? 2 : 1;
  const std::size_t end = text.find_first_of(" \t\r\n<>\"'=", begin);
  if (end == std::string_view::npos) return text.size() - begin <= kMaxWord ? Match::partial : Match::no;
  if (end - begin > kMaxWord) return Match::no;
  if (text[end] != (tag.closing ? '>' : ' ')) return Match::no;
  const std::string_view word = text.substr(begin, end - begin);
  for (const NamedTag& candidate : kNames) {
    if (candidate.name == TagName::block || !word.ends_with(candidate.text)) continue;
    tag.marker = kMarkers.front();
    tag.name = candidate.name;
    tag.length = end;
    return Match::yes;
  }
  return Match::no;
}

Match match_stray_tag(std::string_view text, std::size_t& length) {
  constexpr std::size_t kMaxLength = 256;
  std::size_t begin = 0;
  if (text.starts_with('<')) begin = text.substr(1).starts_with('/') ? 2 : 1;
  Match best = Match::no;
  for (const std::string_view marker : kMarkers) {
    // Without a `<`, only what nobody writes by accident.
    if (marker.empty() || (begin == 0 && marker != kMarkers.front())) continue;
    const Match match = match_literal(text.substr(begin), marker);
    if (match == Match::partial) best = Match::partial;
    if (match != Match::yes) continue;
    const std::size_t name = begin + marker.size();
    const std::size_t end = text.find_first_of("<>\n", name);
    if (end == std::string_view::npos && text.size() - name <= kMaxLength) best = Match::partial;
    length = name;
    while (length < text.size() && is_tag_name_character(text[length])) ++length;
    if (end != std::string_view::npos && end - name <= kMaxLength && text[end] == '>') length = end + 1;
    return best == Match::partial ? Match::partial : Match::yes;
  }
  return best;
}

std::optional<TagAttributes> parse_attributes(std::string_view header) {
  TagAttributes attributes;
  std::size_t at = 0;
  const auto skip_space = [&] {
    while (at < header.size() && is_space(header[at])) ++at;
  };
  while (at < header.size()) {
    if (header[at] == '>') {
      attributes.length = at + 1;
      return attributes;
    }
    const std::size_t key_begin = at;
    while (at < header.size() && is_tag_name_character(header[at])) ++at;
    const std::string_view key = header.substr(key_begin, at - key_begin);
    if (key.empty()) {
      ++at;  // space, or something that does not belong here
      continue;
    }
    skip_space();
    if (at == header.size() || header[at] != '=') continue;
    ++at;
    skip_space();
    if (at == header.size()) break;
    std::string_view value;
    if (header[at] == '"' || header[at] == '\'') {
      const std::size_t end = header.find(header[at], at + 1);
      if (end == std::string_view::npos) break;
      value = header.substr(at + 1, end - at - 1);
      at = end + 1;
    } else {
      const std::size_t begin = at;
      while (at < header.size() && !is_space(header[at]) && header[at] != '>') ++at;
      value = header.substr(begin, at - begin);
    }
    if (key == "name" && !attributes.name) attributes.name = value;
    if (key == "string" && !attributes.string) attributes.string = value;
  }
  return std::nullopt;
}

}  // namespace hadal
