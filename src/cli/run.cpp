// hadal run: one completion, streamed to stdout.
#include <cstdio>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/input.h"
#include "cli/prompt.h"

namespace hadal::cli {
namespace {

struct RunArguments {
  EngineOptions engine;
  SamplingOptions sampling;
  std::string prompt, file = "-", system, think = "off";
  std::vector<std::string> stop;
  std::int64_t tokens = 256;
  bool raw = false, specials = false, quiet = false;
};

Result<std::vector<std::int32_t>> encode_prompt(const Engine& engine, const RunArguments& arguments,
                                                const std::string& text) {
  if (arguments.raw) {
    return arguments.specials ? engine.tokenizer().encode_with_specials(text)
                              : engine.tokenizer().encode(text);
  }
  HADAL_ASSIGN_OR_RETURN(const ChatDialect* dialect, dialect_of_config(engine.info().config_json));
  std::vector<ChatMessage> messages;
  if (!arguments.system.empty()) {
    HADAL_RETURN_IF_ERROR(check_utf8(arguments.system, "the system text"));
    messages.push_back(text_message("system", arguments.system));
  }
  messages.push_back(text_message("user", text));
  return encode_turn(engine.tokenizer(), *dialect, chat_options(*dialect, arguments.think), messages);
}

Status run(const RunArguments& arguments, const std::string* given_prompt) {
  HADAL_RETURN_IF_ERROR(arguments.sampling.validate());
  std::string text;
  if (given_prompt != nullptr) {
    text = *given_prompt;
  } else {
    HADAL_ASSIGN_OR_RETURN(text, read_input(arguments.file));
  }
  HADAL_RETURN_IF_ERROR(check_utf8(text, "the prompt"));
  HADAL_ASSIGN_OR_RETURN(const Engine engine, Engine::open(arguments.engine));
  HADAL_ASSIGN_OR_RETURN(const auto prompt, encode_prompt(engine, arguments, text));
  if (prompt.empty())
    return fail(ErrorCode::invalid_argument, "the prompt is empty; give it with -p, -f or on stdin");

  GenerationOptions options;
  options.max_tokens = arguments.tokens;
  options.sampling = arguments.sampling;
  options.stop = arguments.stop;
  options.stop_tokens = {engine.info().eos_token};
  options.cancelled = interrupted;
  catch_interrupt();
  Sequence sequence = engine.start();
  HADAL_ASSIGN_OR_RETURN(const Generation generation,
                         engine.generate(sequence, prompt, options, [](const GeneratedToken& token) {
                           std::fwrite(token.text.data(), 1, token.text.size(), stdout);
                           std::fflush(stdout);
                         }));
  HADAL_RETURN_IF_ERROR(write_output("\n"));
  if (!arguments.quiet) {
    notice(fmt::format("{}; {} on {} threads, {}; state {:.1f} MB, peak memory {:.2f} GB",
                       describe(generation), engine.info().backend, engine.info().threads,
                       engine.info().numerics, static_cast<double>(sequence.state_bytes()) / 1e6,
                       static_cast<double>(peak_memory_bytes()) / 1e9));
  }
  return {};
}

}  // namespace

void register_run(CLI::App& app, Outcome& outcome) {
  auto* command = app.add_subcommand("run", "One completion, streamed to stdout");
  auto arguments = std::make_shared<RunArguments>();
  add_engine_options(*command, arguments->engine);
  auto* prompt = command->add_option("-p,--prompt", arguments->prompt, "The prompt");
  command->add_option("-f,--file", arguments->file, "A file with the prompt; - for stdin")
      ->type_name("FILE")
      ->excludes(prompt);
  command->add_option("-n,--tokens", arguments->tokens, "At most so many tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_sampling_options(*command, arguments->sampling);
  auto* raw =
      command->add_flag("--raw", arguments->raw, "Continue the text as it is; otherwise it is a user's turn");
  command
      ->add_flag("--specials", arguments->specials,
                 "With --raw: special tokens in the text are special (trusted text only)")
      ->needs(raw);
  command
      ->add_option("--think", arguments->think,
                   "off, low, high or max; what the model thinks comes before </think>")
      ->check(CLI::IsMember({"off", "low", "high", "max"}))
      ->capture_default_str();
  command->add_option("--system", arguments->system, "System text before the prompt");
  command->add_option("--stop", arguments->stop, "End before this text; may be given more than once")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_flag("-q,--quiet", arguments->quiet, "No summary on stderr");
  command->footer("Example: hadal run -p 'Why is the sea salty?' -n 100 --temp 0.7");
  command->callback([arguments, prompt, &outcome] {
    if (const Status done = run(*arguments, prompt->count() > 0 ? &arguments->prompt : nullptr); !done) {
      outcome.exit_code = report(done.error());
    }
  });
}

}  // namespace hadal::cli
