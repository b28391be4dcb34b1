// Names that come from files, made fit for an error message of one line.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

namespace hadal {

constexpr std::size_t kMaxTensorName = 256;  // bytes; the longest of the published ones has 48

inline bool is_control(char c) {
  return static_cast<unsigned char>(c) < 32 || c == 127;
}

// 'name' in quotes, control characters as '?', cut after kMaxTensorName bytes.
inline std::string quote_name(std::string_view name) {
  std::string text(name.substr(0, kMaxTensorName));
  std::replace_if(text.begin(), text.end(), is_control, '?');
  return "'" + text + (name.size() > kMaxTensorName ? "...'" : "'");
}

// What may name a tensor, so that later messages can print it as it is.
inline bool plain_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxTensorName && std::none_of(name.begin(), name.end(), is_control);
}

}  // namespace hadal
