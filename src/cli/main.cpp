// The hadal binary: one subcommand per file of src/cli, as docs/cli.md lists them.
#include <csignal>

#include "cli/command.h"

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // past a limit on file sizes, write() then fails as on a full disk
  CLI::App app{"hadal: DeepSeek-V4 in C++. 'hadal COMMAND --help' explains a command.", "hadal"};
  app.require_subcommand(1);
  app.set_version_flag("--version", HADAL_VERSION);
  hadal::cli::Outcome outcome;
  hadal::cli::register_run(app, outcome);
  hadal::cli::register_chat(app, outcome);
  hadal::cli::register_logits(app, outcome);
  hadal::cli::register_tokenize(app, outcome);
  hadal::cli::register_detokenize(app, outcome);
  hadal::cli::register_render(app, outcome);
  hadal::cli::register_parse(app, outcome);
  hadal::cli::register_inspect(app, outcome);
  hadal::cli::register_init(app, outcome);
  hadal::cli::register_bench(app, outcome);
  hadal::cli::register_plan(app, outcome);
  hadal::cli::register_data(app, outcome);
  hadal::cli::register_tokenizer(app, outcome);
  hadal::cli::register_train(app, outcome);
  hadal::cli::register_eval(app, outcome);
  hadal::cli::register_serve(app, outcome);
  hadal::cli::register_cache(app, outcome);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);  // prints help to stdout, errors to stderr
    return code == 0 ? hadal::cli::kDone : hadal::cli::kBadUsage;
  }
  return outcome.exit_code;
}
