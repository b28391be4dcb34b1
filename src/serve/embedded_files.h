// Files that the server hands out, linked into the binary: the web page and the description of the API.
#pragma once

#include <optional>
#include <string_view>

namespace hadal::serve {

struct PageFile {
  std::string_view text, type;
};

// What of the page lies at this path: web/index.html at "" and "/", and what that asks for.
std::optional<PageFile> embedded_page(std::string_view path);
std::string_view embedded_openapi();  // web/openapi.json

}  // namespace hadal::serve
