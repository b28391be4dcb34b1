#include "cli/input.h"

#include <array>
#include <cstddef>
#include <cstdio>

#include "base/mapped_file.h"

namespace hadal::cli {

Result<std::string> read_input(const std::string& path) {
  constexpr std::size_t kLimit = std::size_t{1} << 30;
  if (path != "-") return read_file(path, kLimit);
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), stdin)) {
    text.append(buffer.data(), n);
    if (text.size() > kLimit) return fail(ErrorCode::invalid_argument, "standard input: more than 1 GiB");
  }
  if (std::ferror(stdin) != 0) return fail(ErrorCode::io, "standard input: cannot be read");
  return text;
}

Status write_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return fail(ErrorCode::io, "standard output: cannot be written");
  }
  return {};
}

}  // namespace hadal::cli
