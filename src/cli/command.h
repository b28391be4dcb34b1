// What every command of the hadal binary shares: registration, exit codes, and how an error reaches the user.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include <hadal/error.h>

namespace hadal::cli {

constexpr int kDone = 0;      // the work is done
constexpr int kFailed = 1;    // the work failed: one line on stderr says what, where and what to do
constexpr int kBadUsage = 2;  // the command line is wrong

// The exit code of the command that ran; its CLI11 callback writes it.
struct Outcome {
  int exit_code = kDone;
};

// Prints "hadal: <message>" to stderr, returns kFailed.
int report(const Error& error);

// One per command, each in src/cli/<name>.cpp: adds the subcommand with its options, an example in its
// footer, and a callback that does the work and writes outcome.exit_code.
void register_run(CLI::App& app, Outcome& outcome);
void register_chat(CLI::App& app, Outcome& outcome);
void register_logits(CLI::App& app, Outcome& outcome);
void register_tokenize(CLI::App& app, Outcome& outcome);
void register_detokenize(CLI::App& app, Outcome& outcome);
void register_render(CLI::App& app, Outcome& outcome);
void register_parse(CLI::App& app, Outcome& outcome);
void register_inspect(CLI::App& app, Outcome& outcome);
void register_init(CLI::App& app, Outcome& outcome);
void register_bench(CLI::App& app, Outcome& outcome);
void register_plan(CLI::App& app, Outcome& outcome);
void register_data(CLI::App& app, Outcome& outcome);
void register_tokenizer(CLI::App& app, Outcome& outcome);
void register_train(CLI::App& app, Outcome& outcome);
void register_eval(CLI::App& app, Outcome& outcome);
void register_serve(CLI::App& app, Outcome& outcome);
void register_cache(CLI::App& app, Outcome& outcome);

}  // namespace hadal::cli
