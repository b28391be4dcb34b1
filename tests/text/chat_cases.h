// The golden cases of the chat encoding (tests/data), made with DeepSeek's official encoder and parser.
#pragma once

#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "text/json_value.h"

namespace hadal {

inline JsonValue load_cases(const std::string& name) {
  const auto text = read_file(std::string(HADAL_TEST_DATA) + "/" + name);
  if (!text) {
    ADD_FAILURE() << text.error().message();
    return {};
  }
  auto json = parse_json(*text, {.python_constants = true});
  if (!json) {
    ADD_FAILURE() << json.error().message();
    return {};
  }
  return std::move(*json);
}

// A member that must be there and be a string.
inline std::string string_member(const JsonValue& json, std::string_view key) {
  const JsonValue* member = json.find(key);
  EXPECT_TRUE(member != nullptr && member->is_string()) << key;
  return member != nullptr ? member->text : std::string();
}

}  // namespace hadal
