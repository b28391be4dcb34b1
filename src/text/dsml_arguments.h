// The arguments of one tool call, from DSML parameters to the text of a JSON object, written as it comes in.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_value.h"

namespace hadal {

// The JSON schema of the parameters of each tool, by its name.
using ToolSchemas = std::map<std::string, JsonValue, std::less<>>;

// From an OpenAI tools array. What has no name or no schema is left out.
ToolSchemas tool_schemas_from_json(const JsonValue& tools);

// What the attribute `string` of a parameter says about its value.
enum class ValueForm : std::uint8_t {
  string,       // "true": the text is the string
  json,         // "false": the text is JSON
  unspecified,  // no such attribute: a string, unless the schema knows better
};

// Writes `{"name": value, ...}` in pieces. Whatever the values are, the pieces put together are valid JSON
// once end() has been called. Values:
// - string: quoted, unless the schema wants no string and the text is a JSON value of a type it wants;
// - json: the text as it is (numbers keep their spelling) if it is valid JSON, else quoted; quoted too where
// the
//   schema wants a string and the text is JSON of a type that it does not want.
// A name that comes twice is written twice: readers of JSON take the last.
class ArgumentWriter {
 public:
  // `parameters` is the schema of the tool, or null; it must outlive the call.
  void begin(const JsonValue* parameters);

  void begin_value(std::string_view name, ValueForm form, std::string& out);
  void value_text(std::string_view text, std::string& out);  // the next piece of the value
  void end_value(std::string& out);

  // A parameter whose value is a list of parameters: a nested object. value_to_object makes one of the
  // current value, if that is not a string and no text of it but white space has come.
  static constexpr std::size_t kMaxDepth = 16;
  bool value_to_object(std::string& out);
  void begin_object(std::string_view name, std::string& out);
  void end_object(std::string& out);
  std::size_t depth() const { return open_.size() - 1; }  // nested objects that are open

  void end(std::string& out);  // closes what is open

 private:
  struct Object {
    const JsonValue* schema;
    bool empty;
  };

  const JsonValue* begin_member(std::string_view name, std::string& out);  // returns its schema
  void end_typed_value(std::string& out);

  std::vector<Object> open_;
  ValueForm form_ = ValueForm::string;
  const JsonValue* value_schema_ = nullptr;
  unsigned types_ = 0;      // what the schema wants of the current value, one bit per type; 0: anything
  bool streaming_ = false;  // the current value is written as it comes in, else collected in value_
  std::string value_;
};

}  // namespace hadal
