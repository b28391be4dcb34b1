// The formats of JSON schema that can be kept, as regular expressions. Each matches only what every reading
// of the format takes: days up to the 28th of February, addresses of plain letters.
#pragma once

#include <optional>
#include <string_view>

namespace hadal {

std::optional<std::string_view> string_format(std::string_view name);

}  // namespace hadal
