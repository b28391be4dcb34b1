// hadal init: a random checkpoint in the published layout.
#include "model/init.h"

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <memory>

#include <fmt/format.h>

#include "base/mapped_file.h"
#include "cli/command.h"

namespace hadal::cli {
namespace {

struct InitArguments {
  std::string preset, config, format = "published", out;
  std::int64_t layers = 0, experts = 0, shard_bytes = InitOptions{}.shard_bytes;
  std::uint64_t seed = 0;
  bool force = false;
};

// Set by the first Ctrl-C or SIGTERM, so that the unfinished files are removed; a handler can reach nothing
// but a global.
std::atomic<bool> interrupted{false};  // NOLINT
static_assert(std::atomic<bool>::is_always_lock_free);

void catch_interrupt() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted.store(true); };
  action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);  // the second one ends the process
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

Result<Config> config_to_init(const InitArguments& arguments) {
  Result<Config> config = fail(ErrorCode::invalid_argument, "");
  if (!arguments.preset.empty()) {
    config = preset_config(arguments.preset);
  } else {
    HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(arguments.config, std::size_t{16} << 20));
    config = parse_config(text);
    if (!config) return tl::unexpected(std::move(config).error().with_context(arguments.config));
  }
  if (!config) return config;
  return cut_config(std::move(*config), arguments.layers, arguments.experts);
}

Status init(const InitArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const Config config, config_to_init(arguments));
  InitOptions options;
  options.seed = arguments.seed;
  options.format = arguments.format == "bf16"  ? StorageFormat::bf16
                   : arguments.format == "f32" ? StorageFormat::f32
                                               : StorageFormat::published;
  options.shard_bytes = arguments.shard_bytes;
  options.force = arguments.force;
  catch_interrupt();
  const bool bar = ::isatty(STDERR_FILENO) != 0;
  int shown = -1;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    const int percent = static_cast<int>(100 * (static_cast<double>(done) / static_cast<double>(total)));
    if (bar && percent != shown) {
      fmt::print(stderr, "\r{:3}% of {:.2f} GB", percent, static_cast<double>(total) * 1e-9);
      shown = percent;
    }
    return !interrupted.load();
  };
  ThreadPool pool;
  const auto summary = init_checkpoint(config, arguments.out, options, pool);
  if (bar && shown >= 0) fmt::print(stderr, "\r\033[K");
  if (!summary) return tl::unexpected(summary.error());
  fmt::print(stderr, "{}: {} tensors, {} bytes in {} file{}; put a tokenizer.json beside them to use text\n",
             arguments.out, summary->tensors, summary->bytes, summary->shards.size(),
             summary->shards.size() == 1 ? "" : "s");
  return {};
}

}  // namespace

void register_init(CLI::App& app, Outcome& outcome) {
  const auto arguments = std::make_shared<InitArguments>();
  CLI::App* command = app.add_subcommand("init", "Write a random checkpoint in the published layout");
  CLI::Option_group* source = command->add_option_group("shape");
  source->add_option("--preset", arguments->preset, "The published shape: flash, pro or v3.2")
      ->check(CLI::IsMember({"flash", "pro", "v3.2"}));
  source->add_option("--config", arguments->config, "The config.json of the shape");
  source->require_option(1);
  command->add_option("--layers", arguments->layers, "Keep the first N layers (and the MTP block)")
      ->check(CLI::PositiveNumber);
  command->add_option("--experts", arguments->experts, "Keep N routed experts")->check(CLI::PositiveNumber);
  command->add_option("--seed", arguments->seed, "Of the random values")->capture_default_str();
  command->add_option("--format", arguments->format, "published (FP4, FP8 and BF16), bf16 or f32")
      ->check(CLI::IsMember({"published", "bf16", "f32"}))
      ->capture_default_str();
  command->add_option("--shard-bytes", arguments->shard_bytes, "Most bytes of tensors in one file")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--force", arguments->force, "Replace a checkpoint that is already there");
  command->add_option("OUT", arguments->out, "The directory to write")->required();
  command->footer("Example: hadal init --preset flash --layers 3 --experts 16 /tmp/small-flash");
  command->callback([arguments, &outcome] {
    const Status status = init(*arguments);
    outcome.exit_code = status ? kDone : report(status.error());
  });
}

}  // namespace hadal::cli
