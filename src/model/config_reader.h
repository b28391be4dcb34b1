// Reads the fields of a config.json one by one, with bounds and defaults; for the parsers of config.cpp and
// config_v32.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "model/config.h"

namespace hadal::config_detail {

using Json = nlohmann::json;

// Arrays and objects are not printed: they may be nested deeper than the stack is.
inline std::string excerpt(const Json& value) {
  if (value.is_array()) return fmt::format("an array of {}", value.size());
  if (value.is_object()) return "an object";
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

// Reads a config.json field by field and keeps the first thing that is wrong with it.
class Reader {
 public:
  explicit Reader(const Json& root) : root_(root) {}

  const Json& root() const { return root_; }
  const std::string& problem() const { return problem_; }
  void wrong(std::string text) {
    if (problem_.empty()) problem_ = std::move(text);
  }
  const Json* find(const Json& object, const char* key) const {
    const auto at = object.find(key);
    return at == object.end() || at->is_null() ? nullptr : &*at;
  }
  const Json* find(const char* key) const { return find(root_, key); }

  // An integer in [low, high]; a missing one is wrong unless there is a default.
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high,
                       std::optional<std::int64_t> absent = {}) {
    const Json* value = find(key);
    if (value == nullptr) {
      if (!absent) wrong(fmt::format("'{}' is missing", key));
      return absent.value_or(low);
    }
    return integer_value(key, *value, low, high);
  }
  std::int64_t integer_value(const char* key, const Json& value, std::int64_t low, std::int64_t high) {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<std::uint64_t>() <= std::uint64_t{1} << 62);
    if (!fits || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
      wrong(fmt::format("'{}' is {}, expected an integer from {} to {}", key, excerpt(value), low, high));
      return low;
    }
    return value.get<std::int64_t>();
  }
  double real(const Json& object, const char* key, double low, double high, double absent) {
    const Json* value = find(object, key);
    if (value == nullptr) return absent;
    const double x = value->is_number() ? value->get<double>() : std::nan("");
    if (!(x >= low && x <= high)) {  // NaN too
      wrong(fmt::format("'{}' is {}, expected a number from {} to {}", key, excerpt(*value), low, high));
      return absent;
    }
    return x;
  }
  double real(const char* key, double low, double high, double absent) {
    return real(root_, key, low, high, absent);
  }

  // A field that hadal knows in one value only.
  void only(const char* key, const Json& expected) {
    const Json* value = find(key);
    if (value != nullptr && *value != expected) {
      wrong(fmt::format("'{}' is {}, and hadal runs only {}", key, excerpt(*value), expected.dump()));
    }
  }

 private:
  const Json& root_;
  std::string problem_;
};

// rope_theta, compress_rope_theta and rope_scaling, or rope_parameters {main, compress}.
void read_rope(Reader& in, Config& c);
// quantization_config describes the dense linears, expert_dtype the routed experts; without the first the
// dense linears are plain, without the second the experts are stored like the rest.
void read_storage(Reader& in, Config& c);

}  // namespace hadal::config_detail
