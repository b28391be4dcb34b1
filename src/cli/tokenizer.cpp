// hadal tokenizer train: a byte-level BPE for a corpus, with V4's pre-tokeniser and special tokens.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/prompt.h"
#include "embedded_model.h"
#include "text/bpe_trainer.h"
#include "text/tokenizer_json.h"

namespace hadal::cli {
namespace {

namespace fs = std::filesystem;

struct TokenizerArguments {
  std::vector<std::string> files;
  std::string out, base;
  std::int64_t vocab_size = 4096, min_count = 2;
  int threads = 0;
  bool bare = false;
};

Status train(const TokenizerArguments& arguments) {
  std::string base(embedded_model().tokenizer_json);
  if (!arguments.base.empty()) {
    fs::path path = arguments.base;
    if (fs::is_directory(path)) path /= "tokenizer.json";
    HADAL_ASSIGN_OR_RETURN(base, read_file(path));
  }
  HADAL_ASSIGN_OR_RETURN(const TokenizerDescription description, parse_tokenizer_json(base));
  HADAL_ASSIGN_OR_RETURN(const PreTokenizer pre_tokenizer, PreTokenizer::create(description.split_patterns));
  HADAL_ASSIGN_OR_RETURN(const std::int64_t n_symbols,
                         symbols_for(base, arguments.vocab_size, !arguments.bare));
  ThreadPool pool(arguments.threads);
  WordCounts counts;
  std::size_t bytes = 0;
  for (const std::string& name : arguments.files) {
    HADAL_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(name));
    const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    if (text.empty())
      return fail(ErrorCode::invalid_argument, fmt::format("{}: empty; give it some text", name));
    HADAL_RETURN_IF_ERROR(check_utf8(text, name));
    HADAL_RETURN_IF_ERROR(counts.add(pre_tokenizer, text, pool));
    bytes += text.size();
  }
  const std::vector<WordCounts::Word> words = counts.sorted();
  Progress bar;
  const LearnedBpe bpe = learn_bpe(words, n_symbols, arguments.min_count,
                                   [&](std::int64_t done) { bar.show(done, n_symbols, "symbols"); });
  bar.clear();
  HADAL_ASSIGN_OR_RETURN(const std::string json,
                         tokenizer_json_with(base, bpe, arguments.vocab_size, !arguments.bare));
  HADAL_RETURN_IF_ERROR(write_file(arguments.out, json));
  const std::int64_t missing = n_symbols - static_cast<std::int64_t>(bpe.symbols.size());
  fmt::print(stderr, "{}: {} bytes, {} different words, {} merges, {} ids{}\n", arguments.out, bytes,
             words.size(), bpe.merges.size(), arguments.vocab_size - (arguments.bare ? missing : 0),
             missing > 0 ? fmt::format("; {} {}, since no further pair occurs {} times", missing,
                                       arguments.bare ? "fewer than asked for" : "of them place holders",
                                       arguments.min_count)
                         : "");
  return {};
}

}  // namespace

void register_tokenizer(CLI::App& app, Outcome& outcome) {
  CLI::App* const tokenizer = app.add_subcommand("tokenizer", "Tokenizers");
  tokenizer->require_subcommand(1);
  const auto arguments = std::make_shared<TokenizerArguments>();
  CLI::App* const command = tokenizer->add_subcommand("train", "Learn a byte-level BPE from text");
  command->add_option("-o,--out", arguments->out, "The tokenizer.json to write")->required();
  command->add_option("--vocab-size", arguments->vocab_size, "Ids in all: bytes, merges and added tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--min-count", arguments->min_count, "A pair must occur so often to become a token")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option(
      "--base", arguments->base,
      "tokenizer.json, or a directory with it, whose patterns and added tokens to keep; by default "
      "the embedded model's, which are V4's");
  command->add_flag("--bare", arguments->bare,
                    "No added tokens, only bytes and merges; --vocab-size 256 gives the bytes alone");
  command->add_option("--threads", arguments->threads, "Threads; 0 for all")
      ->envname("HADAL_THREADS")
      ->check(CLI::Range(0, 4096));
  command->add_option("FILE", arguments->files, "Text, UTF-8")->required();
  command->footer("Example: hadal tokenizer train --vocab-size 4096 -o tokenizer.json corpus.txt");
  command->callback([arguments, &outcome] {
    const Status status = train(*arguments);
    outcome.exit_code = status ? kDone : report(status.error());
  });
}

}  // namespace hadal::cli
