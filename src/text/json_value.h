// JSON as the chat encoding needs it: key order kept, numbers kept as they were spelt, and written again
// byte for byte as Python's json.dumps(value, ensure_ascii=False) writes it, because the model was trained
// on prompts made that way and a prefix cache compares bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

namespace hadal {

struct JsonMember;

struct JsonValue {
  enum class Kind : std::uint8_t { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::string text;  // of a string its UTF-8 content, of a number its literal
  std::vector<JsonValue> items;
  std::vector<JsonMember> members;  // unique keys

  bool is_null() const { return kind == Kind::null; }
  bool is_string() const { return kind == Kind::string; }
  bool is_array() const { return kind == Kind::array; }
  bool is_object() const { return kind == Kind::object; }

  // The member of an object; null for a missing key and for what is not an object.
  const JsonValue* find(std::string_view key) const;

  // What Python calls true: not null, false, 0, "", [] or {}.
  bool truthy() const;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

struct JsonParseOptions {
  std::size_t max_values = 4'000'000;  // bounds the memory, which is up to 60 times that of the text
  int max_depth = 128;                 // arrays and objects open at once; more is an error
  bool python_constants = false;       // NaN, Infinity and -Infinity are numbers, as in Python's json.loads
};

// Of a repeated key the last value wins, at the place of the first (as in a Python dict). A lone surrogate
// escape becomes U+FFFD. Error: corrupt, with line and column (in bytes), also for text that is not UTF-8.
Result<JsonValue> parse_json(std::string_view text, const JsonParseOptions& options = {});

// json.dumps(value, ensure_ascii=False): ", " and ": " between, floats as repr() prints them (1e22 is 1e+22,
// 100.0 stays 100.0, 1e400 is Infinity), integers of any size digit for digit.
std::string to_python_json(const JsonValue& value);

// Appends `text` as a JSON string without its quotes. Works piece by piece: the escapes of a concatenation
// are the concatenation of the escapes.
void append_json_escaped(std::string& out, std::string_view text);

// Appends `text` as a JSON string with its quotes.
void append_json_string(std::string& out, std::string_view text);

// `text` as a JSON string, cut to a length that fits in the one line of an error message.
std::string quoted(std::string_view text);

// str() of a Python float or int read from this JSON number literal.
std::string python_number(std::string_view literal);

}  // namespace hadal
