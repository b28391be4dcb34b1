// Broken invariants abort: HADAL_CHECK is for what only a bug of ours can make false, never for input.
#pragma once

namespace hadal {

[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace hadal

#define HADAL_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::hadal::check_failed(#condition, __FILE__, __LINE__))
