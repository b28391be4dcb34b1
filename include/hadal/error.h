// Errors as values. Bytes from outside (files, requests, flags) give an Error; broken invariants abort
// (base/check.h); nothing else does either.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <tl/expected.hpp>

namespace hadal {

enum class ErrorCode {
  invalid_argument,    // the caller asked for something that makes no sense
  not_found,           // a file or a name that is not there
  corrupt,             // bytes that are not what their format says
  unsupported,         // well formed, but not something hadal does
  resource_exhausted,  // memory, disk or context used up
  cancelled,           // the caller asked to stop
  io,                  // the operating system said no
  internal,            // a bug of ours
};

std::string_view to_string(ErrorCode code);

// What went wrong, in one line: what, where, and what to do. Context is added in front on the way up.
class [[nodiscard]] Error {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // "where: message"
  Error with_context(std::string_view where) && {
    message_.insert(0, ": ").insert(0, where);
    return std::move(*this);
  }

 private:
  ErrorCode code_;
  std::string message_;
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

inline tl::unexpected<Error> fail(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error(code, std::move(message)));
}

}  // namespace hadal

// Returns the error of `expr` to the caller, else goes on.
#define HADAL_RETURN_IF_ERROR(expr)                                             \
  do {                                                                          \
    if (auto hadal_status = (expr); !hadal_status.has_value())                  \
      return ::tl::unexpected<::hadal::Error>(std::move(hadal_status).error()); \
  } while (false)

#define HADAL_CONCAT_INNER(a, b) a##b
#define HADAL_CONCAT(a, b) HADAL_CONCAT_INNER(a, b)

// HADAL_ASSIGN_OR_RETURN(auto x, f());
// NOLINTBEGIN(bugprone-macro-parentheses): `decl` is a declaration
#define HADAL_ASSIGN_OR_RETURN(decl, expr) \
  HADAL_ASSIGN_OR_RETURN_IMPL(HADAL_CONCAT(hadal_result_, __LINE__), decl, expr)
#define HADAL_ASSIGN_OR_RETURN_IMPL(result, decl, expr)                                        \
  auto result = (expr);                                                                        \
  if (!result.has_value()) return ::tl::unexpected<::hadal::Error>(std::move(result).error()); \
  decl = std::move(*result)
// NOLINTEND(bugprone-macro-parentheses)
