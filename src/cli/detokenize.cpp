// hadal detokenize: a JSON array of ids on stdin (or what `hadal tokenize` prints) to the bytes they stand
// for.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <simdjson.h>

#include "cli/command.h"
#include "cli/text_io.h"

namespace hadal::cli {
namespace {

// Elements are ids, or objects with an "id".
Result<std::vector<std::int32_t>> parse_ids(std::string_view json) {
  simdjson::dom::parser parser;
  simdjson::dom::element document;
  if (const auto error = parser.parse(json.data(), json.size()).get(document); error != simdjson::SUCCESS) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("stdin: not JSON: {}; expected an array of ids like [1,2,3]",
                            simdjson::error_message(error)));
  }
  simdjson::dom::array elements;
  if (document.get(elements) != simdjson::SUCCESS) {
    return fail(ErrorCode::invalid_argument, "stdin: not a JSON array; expected ids like [1,2,3]");
  }
  std::vector<std::int32_t> ids;
  for (simdjson::dom::element element : elements) {
    if (element.is_object()) {
      simdjson::dom::element id;
      if (element["id"].get(id) == simdjson::SUCCESS) element = id;
    }
    std::int64_t id = 0;
    if (element.get(id) != simdjson::SUCCESS || id != static_cast<std::int32_t>(id)) {
      return fail(
          ErrorCode::invalid_argument,
          fmt::format("stdin: the element at index {} is neither an id nor an object with one", ids.size()));
    }
    ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

Status detokenize(const std::string& model) {
  HADAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, load_tokenizer(model));
  HADAL_ASSIGN_OR_RETURN(const std::string json, read_stdin());
  HADAL_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, parse_ids(json));
  auto bytes = tokenizer.decode(ids);
  if (!bytes) return tl::unexpected(std::move(bytes).error().with_context("stdin"));
  return write_stdout(*bytes);
}

}  // namespace

void register_detokenize(CLI::App& app, Outcome& outcome) {
  CLI::App* const command =
      app.add_subcommand("detokenize", "Token ids on stdin, as JSON, to the bytes they stand for");
  const auto model = std::make_shared<std::string>();
  command->add_option("-m,--model", *model,
                      "Directory with tokenizer.json, or that file (default: the embedded model)");
  command->footer(
      "Takes [1,2,3] or what 'hadal tokenize' prints.\nExample:\n  echo '[1,2,3]' | hadal detokenize");
  command->callback([model, &outcome] {
    const Status status = detokenize(*model);
    outcome.exit_code = status ? kDone : report(status.error());
  });
}

}  // namespace hadal::cli
