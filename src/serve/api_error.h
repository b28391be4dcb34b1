// Errors of the API, and how each of its dialects says them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <hadal/error.h>

#include "serve/http_server.h"

namespace hadal::serve {

using Json = nlohmann::ordered_json;

// As text; what is not UTF-8 (it cannot be, after the parser) becomes U+FFFD rather than an exception.
std::string to_text(const Json& json);

enum class Api : std::uint8_t { chat, completions, responses, messages, other };
// Whose errors a path speaks, also when the path is not known.
Api api_of_path(std::string_view path);

struct ApiError {
  enum class Kind : std::uint8_t {
    invalid,         // 400
    too_long,        // 400: the prompt does not fit
    authentication,  // 401
    permission,      // 403
    not_found,       // 404
    method,          // 405
    timeout,         // 408
    too_large,       // 413
    rate_limit,      // 429
    internal,        // 500
    unavailable,     // 503; 529 in the Messages API
  };

  Kind kind = Kind::invalid;
  std::string message;
  std::string param;    // the field of the request
  int retry_after = 0;  // seconds; 0: not said

  int status(Api api) const;
  // {"error": {...}} or {"type": "error", "error": {...}}
  Json body(Api api) const;
  // What an error event of a stream holds that has begun already.
  Json stream_body(Api api) const;
  HttpHeaders headers() const;
};

inline ApiError invalid(std::string message, std::string param = "") {
  return {ApiError::Kind::invalid, std::move(message), std::move(param), 0};
}

// Only the class of an error is told; its text may name files of this machine.
ApiError from_error(const Error& error);
ApiError from_status(int status, std::string_view message);

template <class T>
using ApiResult = tl::expected<T, ApiError>;

}  // namespace hadal::serve
