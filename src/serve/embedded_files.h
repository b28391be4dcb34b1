// Files that the server hands out, linked into the binary: the web page and the description of the API.
#pragma once

#include <string_view>

namespace hadal::serve {

std::string_view embedded_page();     // web/index.html
std::string_view embedded_openapi();  // web/openapi.json

}  // namespace hadal::serve
