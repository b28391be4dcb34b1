// What commands read and write as a whole: a file or standard input, and text for standard output.
#pragma once

#include <string>
#include <string_view>

#include <hadal/error.h>

namespace hadal::cli {

// The bytes of a file, a pipe (`<(command)`, /dev/stdin) or, for "-", standard input. Errors: not_found, io,
// and invalid_argument for more than 1 GiB.
Result<std::string> read_input(const std::string& path);

// Writes to standard output and flushes it. Error: io (a full disk, a closed pipe).
Status write_output(std::string_view text);

}  // namespace hadal::cli
