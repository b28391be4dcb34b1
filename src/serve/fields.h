// Reads the fields of a JSON request. A field that is missing or null has its default; one that cannot be
// what it is makes the request invalid, and the first such field is the one that the client hears of.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "serve/api_error.h"
#include "text/json_value.h"

namespace hadal::serve {

class Fields {
 public:
  // `path` names the object in messages: "" or "messages[3]".
  Fields(const JsonValue& object, std::string path, std::optional<ApiError>& error)
      : object_(object), path_(std::move(path)), error_(error) {
    if (!object.is_object()) fail("", "must be an object");
  }

  // Null for a field that is missing or null.
  const JsonValue* get(std::string_view key) const {
    const JsonValue* value = object_.find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  bool boolean(std::string_view key, bool otherwise);
  std::int64_t integer(std::string_view key, std::int64_t otherwise, std::int64_t least, std::int64_t most);
  double number(std::string_view key, double otherwise, double least, double most);
  std::string string(std::string_view key, std::string otherwise = "");
  const JsonValue* array(std::string_view key, std::size_t most);
  const JsonValue* object(std::string_view key);

  std::string name(std::string_view key) const;
  void fail(std::string_view key, std::string_view what);

 private:
  const JsonValue& object_;
  std::string path_;
  std::optional<ApiError>& error_;
};

// The value of a JSON number, if it is one that `double` holds (never NaN or infinity).
std::optional<double> to_number(const JsonValue& value);
// If it is a whole one within +-2^53; 5.0 is.
std::optional<std::int64_t> to_integer(const JsonValue& value);
// The same value, for an answer to repeat. A number that no double holds becomes the largest that one does.
Json to_json(const JsonValue& value);

}  // namespace hadal::serve
