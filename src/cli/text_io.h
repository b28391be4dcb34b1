// What the commands on text share: the tokenizer of a model, all of stdin, all of stdout.
#pragma once

#include <string>
#include <string_view>

#include <hadal/error.h>
#include <hadal/tokenizer.h>

namespace hadal::cli {

// The tokenizer of `model`: a directory with tokenizer.json, or that file itself; empty is the embedded
// model.
Result<Tokenizer> load_tokenizer(const std::string& model);

// Every byte of stdin. Error: io.
Result<std::string> read_stdin();

// Writes and flushes. Error: io, resource_exhausted on a full disk.
Status write_stdout(std::string_view bytes);

}  // namespace hadal::cli
