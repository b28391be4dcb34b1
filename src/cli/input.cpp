#include "cli/input.h"

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>

#include <fmt/format.h>

namespace hadal::cli {
namespace {

Result<std::string> read_all(std::FILE* file, std::string_view name) {
  constexpr std::size_t kLimit = std::size_t{1} << 30;
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), file)) {
    text.append(buffer.data(), n);
    if (text.size() > kLimit)
      return fail(ErrorCode::invalid_argument, fmt::format("{}: more than 1 GiB", name));
  }
  if (std::ferror(file) != 0)
    return fail(ErrorCode::io, fmt::format("{}: cannot read: {}", name, std::strerror(errno)));
  return text;
}

}  // namespace

Result<std::string> read_input(const std::string& path) {
  if (path == "-") return read_all(stdin, "standard input");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
  if (file == nullptr) {
    return fail(errno == ENOENT || errno == ENOTDIR ? ErrorCode::not_found : ErrorCode::io,
                fmt::format("{}: cannot open: {}", path, std::strerror(errno)));
  }
  return read_all(file.get(), path);
}

Status write_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return fail(ErrorCode::io, "standard output: cannot be written");
  }
  return {};
}

}  // namespace hadal::cli
