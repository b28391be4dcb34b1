#include "serve/embedded_files.h"

// The assembler copies the files into .rodata; HADAL_WEB is the directory they are in.
#define HADAL_EMBED(symbol, file)                                                                          \
  __asm__(".section .rodata\n.global " #symbol "_begin\n" #symbol "_begin:\n.incbin \"" HADAL_WEB "/" file \
          "\"\n.global " #symbol "_end\n" #symbol "_end:\n.byte 0\n.previous\n");                          \
  extern "C" const char symbol##_begin[];                                                                  \
  extern "C" const char symbol##_end[]

HADAL_EMBED(hadal_web_page, "index.html");
HADAL_EMBED(hadal_web_style, "style.css");
HADAL_EMBED(hadal_web_script, "page.js");
HADAL_EMBED(hadal_web_openapi, "openapi.json");

namespace hadal::serve {
namespace {

std::string_view between(const char* begin, const char* end) {
  return {begin, static_cast<std::size_t>(end - begin)};
}

}  // namespace

std::optional<PageFile> embedded_page(std::string_view path) {
  if (path.empty() || path == "/")
    return PageFile{between(hadal_web_page_begin, hadal_web_page_end), "text/html; charset=utf-8"};
  if (path == "/style.css")
    return PageFile{between(hadal_web_style_begin, hadal_web_style_end), "text/css; charset=utf-8"};
  if (path == "/page.js")
    return PageFile{between(hadal_web_script_begin, hadal_web_script_end), "text/javascript; charset=utf-8"};
  return std::nullopt;
}

std::string_view embedded_openapi() {
  return between(hadal_web_openapi_begin, hadal_web_openapi_end);
}

}  // namespace hadal::serve
