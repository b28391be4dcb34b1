#include "serve/api_error.h"

#include <fmt/format.h>

namespace hadal::serve {
namespace {

using Kind = ApiError::Kind;

std::string_view openai_type(Kind kind) {
  switch (kind) {
    case Kind::authentication:
      return "authentication_error";
    case Kind::permission:
      return "permission_error";
    case Kind::not_found:
      return "not_found_error";
    case Kind::rate_limit:
      return "rate_limit_error";
    case Kind::internal:
    case Kind::unavailable:
    case Kind::timeout:
      return "server_error";
    default:
      return "invalid_request_error";
  }
}

Json openai_code(Kind kind) {
  switch (kind) {
    case Kind::too_long:
      return "context_length_exceeded";
    case Kind::authentication:
      return "invalid_api_key";
    case Kind::not_found:
      return "not_found";
    case Kind::rate_limit:
      return "rate_limit_exceeded";
    case Kind::unavailable:
      return "overloaded";
    case Kind::internal:
      return "internal_error";
    default:
      return nullptr;
  }
}

std::string_view anthropic_type(Kind kind) {
  switch (kind) {
    case Kind::authentication:
      return "authentication_error";
    case Kind::permission:
      return "permission_error";
    case Kind::not_found:
      return "not_found_error";
    case Kind::too_large:
      return "request_too_large";
    case Kind::rate_limit:
      return "rate_limit_error";
    case Kind::timeout:
      return "timeout_error";
    case Kind::unavailable:
      return "overloaded_error";
    case Kind::internal:
      return "api_error";
    default:
      return "invalid_request_error";
  }
}

}  // namespace

std::string to_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Api api_of_path(std::string_view path) {
  if (path.find("/messages") != std::string_view::npos || path.starts_with("/anthropic"))
    return Api::messages;
  if (path.ends_with("/chat/completions")) return Api::chat;
  if (path.ends_with("/completions")) return Api::completions;
  if (path.find("/responses") != std::string_view::npos) return Api::responses;
  return Api::other;
}

int ApiError::status(Api api) const {
  switch (kind) {
    case Kind::invalid:
    case Kind::too_long:
      return 400;
    case Kind::authentication:
      return 401;
    case Kind::permission:
      return 403;
    case Kind::not_found:
      return 404;
    case Kind::method:
      return 405;
    case Kind::timeout:
      return 408;
    case Kind::too_large:
      return 413;
    case Kind::rate_limit:
      return 429;
    case Kind::internal:
      return 500;
    case Kind::unavailable:
      return api == Api::messages ? 529 : 503;
  }
  return 500;
}

Json ApiError::body(Api api) const {
  if (api == Api::messages)
    return {{"type", "error"}, {"error", {{"type", anthropic_type(kind)}, {"message", message}}}};
  return {{"error",
           {{"message", message},
            {"type", openai_type(kind)},
            {"param", param.empty() ? Json() : Json(param)},
            {"code", openai_code(kind)}}}};
}

Json ApiError::stream_body(Api api) const {
  if (api != Api::responses) return body(api);
  return {{"type", "error"},
          {"code", openai_code(kind).is_null() ? Json("invalid_request") : openai_code(kind)},
          {"message", message},
          {"param", param.empty() ? Json() : Json(param)}};
}

HttpHeaders ApiError::headers() const {
  HttpHeaders headers = {{"Content-Type", "application/json"}};
  if (retry_after > 0) headers.emplace_back("Retry-After", std::to_string(retry_after));
  if (kind == Kind::authentication) headers.emplace_back("WWW-Authenticate", "Bearer");
  return headers;
}

ApiError from_error(const Error& error) {
  switch (error.code()) {
    case ErrorCode::invalid_argument:
    case ErrorCode::corrupt:
    case ErrorCode::unsupported:
      return invalid(error.message());
    case ErrorCode::resource_exhausted:
      return {Kind::unavailable, "out of memory or disk for this request", "", 5};
    default:
      return {Kind::internal, "the server failed to answer this request; its log says why", "", 0};
  }
}

ApiError from_status(int status, std::string_view message) {
  const Kind kind = status == 413 || status == 431 ? Kind::too_large
                    : status == 408                ? Kind::timeout
                    : status == 503                ? Kind::unavailable
                                                   : Kind::invalid;
  return {kind, std::string(message), "", 0};
}

}  // namespace hadal::serve
