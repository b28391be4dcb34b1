// What the readers of requests have in common.
#pragma once

#include <string>
#include <string_view>

#include "serve/fields.h"
#include "serve/request.h"

namespace hadal::serve {

// Sampling, penalties, biases, seed, stop strings, user and stream: fields that are spelt alike everywhere.
void read_sampling(Fields& fields, const RequestLimits& limits, Request& request);
void read_stops(Fields& fields, std::string_view key, const RequestLimits& limits, Request& request);

// An effort of any of the dialects to low, high or max; "none" turns thinking off. False if there is no such.
bool read_effort(std::string_view level, Request& request);
// {"type": "enabled" | "disabled" | "adaptive"}
void read_thinking(Fields& fields, Request& request);
// {"type": "json_object" | "json_schema" | "text", ...}; the schema in it or in its member json_schema.
void read_format(Fields& fields, std::string_view key, Request& request);

// Text of a string or of an array of parts, two newlines between; images and the like leave a note.
std::string text_of_content(Fields& fields, std::string_view key);

// What stands for a part that is no text: "[Unsupported Image]" for images however they are spelt.
std::string unsupported_part(std::string_view type);

// A tool for the model: {"type": "function", "function": {name, description, parameters}}, the same whichever
// API it came through: an absent description is "", absent parameters are {}.
JsonValue function_tool(const std::string& name, const JsonValue* description, const JsonValue* parameters);
// A tool that takes any text, as a function with one string.
JsonValue custom_tool(const std::string& name, const std::string& description);
JsonValue json_string(std::string text);
JsonValue json_object(std::vector<JsonMember> members);

// What some clients put into the system text and change with every request, so that no prefix is ever the
// same.
std::string without_volatile_parts(std::string text);
bool is_billing_header(std::string_view text);

// System messages in front become one; later ones become the user's, since the model knows none there.
// Errors: no messages, or none to answer.
void settle_roles(std::optional<ApiError>& error, Request& request);

}  // namespace hadal::serve
