#include "text/utf8.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include <simdjson.h>

namespace hadal {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

constexpr bool between(std::uint8_t byte, std::uint8_t low, std::uint8_t high) {
  return low <= byte && byte <= high;
}

}  // namespace

Utf8Lead utf8_lead(std::string_view bytes) {
  using Kind = Utf8Lead::Kind;
  const auto at = [&](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
  const std::uint8_t lead = at(0);
  if (lead < 0x80) return {Kind::character, 1};
  if (!between(lead, 0xC2, 0xF4)) return {Kind::invalid, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte carries the bounds against overlong forms, surrogates and what is above U+10FFFF.
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xBF;
  switch (lead) {
    case 0xE0:
      low = 0xA0;
      break;
    case 0xED:
      high = 0x9F;
      break;
    case 0xF0:
      low = 0x90;
      break;
    case 0xF4:
      high = 0x8F;
      break;
    default:
      break;
  }
  for (std::size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Kind::incomplete, i};
    if (!between(at(i), low, high)) return {Kind::invalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Kind::character, length};
}

bool is_valid_utf8(std::string_view bytes) {
  return simdjson::validate_utf8(bytes.data(), bytes.size());
}

std::size_t valid_utf8_prefix(std::string_view bytes) {
  std::size_t length = 0;
  const auto step_to = [&](std::size_t end) {  // character by character; false at what is not one
    while (length < end) {
      const Utf8Lead lead = utf8_lead(bytes.substr(length));
      if (lead.kind != Utf8Lead::Kind::character) return false;
      length += lead.length;
    }
    return true;
  };
  // A few characters by hand, so that broken text is cheap too; then whole blocks at the speed of SIMD. A
  // block ends where a character begins, which is at most 3 continuation bytes back.
  constexpr std::size_t kByHand = 64;
  constexpr std::size_t kBlock = 4096;
  if (!step_to(std::min(kByHand, bytes.size()))) return length;
  while (bytes.size() - length > kBlock) {
    std::size_t end = length + kBlock;
    for (int back = 0; back < 3 && (static_cast<std::uint8_t>(bytes[end]) & 0xC0) == 0x80; ++back) --end;
    if (!is_valid_utf8(bytes.substr(length, end - length))) break;
    length = end;
  }
  step_to(bytes.size());
  return length;
}

void take_utf8(std::string& pending, bool at_end, std::string& out) {
  std::string_view rest = pending;
  while (!rest.empty()) {
    const std::size_t valid = valid_utf8_prefix(rest);
    out.append(rest.substr(0, valid));
    rest.remove_prefix(valid);
    if (rest.empty()) break;
    const Utf8Lead lead = utf8_lead(rest);
    if (lead.kind == Utf8Lead::Kind::incomplete && !at_end) break;
    out.append(kReplacement);
    rest.remove_prefix(lead.length);
  }
  pending.erase(0, pending.size() - rest.size());
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string pending(bytes);
  std::string out;
  out.reserve(bytes.size());
  take_utf8(pending, true, out);
  return out;
}

}  // namespace hadal
