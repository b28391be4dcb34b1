#include "cli/text_io.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>

#include "embedded_model.h"

namespace hadal::cli {

Result<Tokenizer> load_tokenizer(const std::string& model) {
  if (!model.empty()) return Tokenizer::load(model);
  const std::string_view json = embedded_model().tokenizer_json;
  if (json.empty()) {
    return fail(ErrorCode::not_found, "this binary has no embedded model; name a model directory with -m");
  }
  auto tokenizer = Tokenizer::from_json(json);
  if (!tokenizer)
    return tl::unexpected(std::move(tokenizer).error().with_context("the embedded tokenizer.json"));
  return tokenizer;
}

Result<std::string> read_stdin() {
  std::string bytes;
  std::array<char, 1 << 16> buffer;  // NOLINT: read() fills it
  for (;;) {
    const ssize_t n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n == 0) return bytes;
    if (n < 0) {
      if (errno == EINTR) continue;
      return fail(ErrorCode::io, fmt::format("stdin: cannot read: {}", std::strerror(errno)));
    }
    bytes.append(buffer.data(), static_cast<std::size_t>(n));
  }
}

Status write_stdout(std::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size() && std::fflush(stdout) == 0)
    return {};
  const int error = errno;
  return fail(error == ENOSPC ? ErrorCode::resource_exhausted : ErrorCode::io,
              fmt::format("stdout: cannot write: {}", std::strerror(error)));
}

}  // namespace hadal::cli
