// hadal data build: text and JSONL to shards of training tokens.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <xxhash.h>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "train/corpus.h"

namespace hadal::cli {
namespace {

namespace fs = std::filesystem;

struct DataArguments {
  std::vector<std::string> files;
  std::string out, tokenizer;
  double held_out = 0;
  std::int64_t shard_tokens = CorpusOptions{}.shard_tokens;
  int threads = 0;
  bool no_marks = false, force = false;
};

// The shards of an earlier build.
std::vector<fs::path> old_shards(const fs::path& out) {
  std::vector<fs::path> found;
  for (const fs::path& directory : {out, out / "held_out"}) {
    std::error_code error;
    for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
      const std::string name = at->path().filename().string();
      if (name.starts_with("shard-") && name.ends_with(".tok")) found.push_back(at->path());
    }
  }
  return found;
}

Status build(const DataArguments& arguments) {
  const std::vector<fs::path> old = old_shards(arguments.out);
  if (!old.empty() && !arguments.force) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: there already; --force replaces the shards", old[0].string()));
  }
  fs::path file = arguments.tokenizer;
  if (fs::is_directory(file)) file /= "tokenizer.json";
  HADAL_ASSIGN_OR_RETURN(const std::string json, read_file(file));
  auto tokenizer = Tokenizer::from_json(json);
  if (!tokenizer) return tl::unexpected(std::move(tokenizer).error().with_context(file.string()));
  CorpusOptions options;
  options.held_out = arguments.held_out;
  options.shard_tokens = arguments.shard_tokens;
  options.document_marks = !arguments.no_marks;
  options.tokenizer_hash = XXH3_64bits(json.data(), json.size());
  const auto id = [&](std::string_view token, std::int32_t& out) -> Status {
    const auto found = tokenizer->id_of(token);
    if (!found)
      return fail(ErrorCode::unsupported,
                  fmt::format("{}: no token {}; --no-marks does without", file.string(), token));
    out = *found;
    return {};
  };
  if (options.document_marks) {
    HADAL_RETURN_IF_ERROR(id(dialect_v4().bos, options.bos));
    HADAL_RETURN_IF_ERROR(id(dialect_v4().eos, options.eos));
  }
  std::error_code ignored;
  for (const fs::path& shard : old) fs::remove(shard, ignored);
  ThreadPool pool(arguments.threads);
  Progress bar;
  options.progress = [&](std::int64_t done, std::int64_t total) { bar.show(done, total, "bytes"); };
  HADAL_ASSIGN_OR_RETURN(const CorpusSummary summary,
                         build_corpus(*tokenizer, arguments.files, arguments.out, options, pool));
  bar.clear();
  fmt::print(stderr, "{}: {} documents, {} bytes, {} tokens ({} count), {} held out, {} shard{}\n",
             arguments.out, summary.documents, summary.bytes, summary.tokens, summary.counted,
             summary.held_out_tokens, summary.shards, summary.shards == 1 ? "" : "s");
  return {};
}

}  // namespace

void register_data(CLI::App& app, Outcome& outcome) {
  CLI::App* const data = app.add_subcommand("data", "Training data");
  data->require_subcommand(1);
  const auto arguments = std::make_shared<DataArguments>();
  CLI::App* const command = data->add_subcommand("build", "Text and JSONL to shards of tokens");
  command->add_option("-t,--tokenizer", arguments->tokenizer, "tokenizer.json, or a directory with it")
      ->required();
  command->add_option("-o,--out", arguments->out, "The directory to write shards into")->required();
  command
      ->add_option(
          "--held-out", arguments->held_out,
          "Share to keep for evaluation, in OUT/held_out: the end of each text, every n-th JSONL line")
      ->check(CLI::Range(0.0, 0.9));
  command->add_option("--shard-tokens", arguments->shard_tokens, "Most tokens in a shard")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--no-marks", arguments->no_marks, "No BOS and EOS around documents of text");
  command->add_flag("--force", arguments->force, "Replace shards that are already there");
  command->add_option("--threads", arguments->threads, "Threads; 0 for all")
      ->envname("HADAL_THREADS")
      ->check(CLI::Range(0, 4096));
  command
      ->add_option(
          "FILE", arguments->files,
          "Text; or *.jsonl with {\"text\": ...} or {\"messages\": [...]} lines, of which only what the "
          "assistant says counts")
      ->required();
  command->footer(
      "Example: hadal data build -t models/default -o data/shakespeare --held-out 0.1 tinyshakespeare.txt");
  command->callback([arguments, &outcome] {
    const Status status = build(*arguments);
    outcome.exit_code = status ? kDone : report(status.error());
  });
}

}  // namespace hadal::cli
