// hadal tokenize: the bytes of stdin to a JSON array, one element per token.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/text_io.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string model;
  bool ids = false;
  bool specials = false;
  bool stats = false;
};

std::string ids_as_json(const std::vector<std::int32_t>& ids) {
  std::string json = "[";
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) json += ',';
    const fmt::format_int digits(ids[i]);
    json.append(digits.data(), digits.size());
  }
  return json + "]\n";
}

// One {"id", "text"} a line. The text of a token that is part of a character has U+FFFD for it.
std::string tokens_as_json(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  std::string json = "[";
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string text = nlohmann::json(tokenizer.token_bytes(ids[i]))
                                 .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    json += fmt::format("{}\n{{\"id\":{},\"text\":{}}}", i > 0 ? "," : "", ids[i], text);
  }
  return json + (ids.empty() ? "]\n" : "\n]\n");
}

Status tokenize(const Options& options) {
  HADAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, load_tokenizer(options.model));
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_stdin());
  const auto start = std::chrono::steady_clock::now();
  HADAL_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids,
                         options.specials ? tokenizer.encode_with_specials(text) : tokenizer.encode(text));
  if (options.stats) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    fmt::print(stderr, "{} bytes to {} ids in {:.6f} s\n", text.size(), ids.size(), seconds.count());
  }
  return write_stdout(options.ids ? ids_as_json(ids) : tokens_as_json(tokenizer, ids));
}

}  // namespace

void register_tokenize(CLI::App& app, Outcome& outcome) {
  CLI::App* const command = app.add_subcommand("tokenize", "Text on stdin to token ids, as JSON");
  const auto options = std::make_shared<Options>();
  command->add_option("-m,--model", options->model,
                      "Directory with tokenizer.json, or that file (default: the embedded model)");
  command->add_flag("--ids", options->ids,
                    "Only the ids: [1,2,3], instead of [{\"id\":1,\"text\":\"...\"},...]");
  command->add_flag(
      "--specials", options->specials,
      "Recognise added tokens such as <think> in the text; without it they are ordinary characters");
  command->add_flag("--stats", options->stats,
                    "Say on stderr how long the encoding took, without loading and printing");
  command->footer(
      "Any bytes go in, and 'hadal detokenize' gives the same bytes back from either form of output.\n"
      "Example:\n  echo 'Hello, world' | hadal tokenize --ids");
  command->callback([options, &outcome] {
    const Status status = tokenize(*options);
    outcome.exit_code = status ? kDone : report(status.error());
  });
}

}  // namespace hadal::cli
