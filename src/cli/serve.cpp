// hadal serve: the API server and the web page.
#include <csignal>
#include <cstdio>
#include <thread>

#include <fmt/format.h>
#include <pthread.h>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "serve/server.h"

namespace hadal::cli {
namespace {

struct ServeArguments {
  EngineOptions engine;
  serve::ServerOptions server;
  std::string key_file, price_file, name, dialect, windows = "periodic";
  std::int64_t grace_seconds = 30;
  bool quiet = false;
};

void log_line(std::string_view line) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
}

// Signals that end the server are taken by one thread that waits for them, so that nothing happens inside a
// handler. Must be called before threads are started, which inherit the mask.
sigset_t block_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a client that has left is an error of write()
  return signals;
}

Status serve(ServeArguments arguments) {
  const sigset_t signals = block_signals();
  if (!arguments.key_file.empty()) {
    HADAL_ASSIGN_OR_RETURN(arguments.server.keys, serve::ApiKeys::load(arguments.key_file));
  }
  if (!arguments.price_file.empty()) {
    HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(arguments.price_file, 1 << 20));
    auto prices = serve::parse_prices(text);
    if (!prices) return tl::unexpected(std::move(prices).error().with_context(arguments.price_file));
    arguments.server.prices = std::move(*prices);
  }
  HADAL_ASSIGN_OR_RETURN(arguments.server.cache_windows, window_strategy_from_string(arguments.windows));
  arguments.engine.chunk_tokens = arguments.server.scheduler.chunk_tokens;
  arguments.engine.memory_sequences = arguments.server.scheduler.max_running;
  HADAL_ASSIGN_OR_RETURN(const Engine engine, Engine::open(arguments.engine));
  const EngineInfo& info = engine.info();
  HADAL_ASSIGN_OR_RETURN(const ChatDialect* dialect, arguments.dialect.empty()
                                                         ? dialect_of_config(info.config_json)
                                                         : find_dialect(arguments.dialect));
  const std::unique_ptr<Runner> runner = make_model_runner(engine);
  serve::ServedModel model{runner.get(), engine.tokenizer(), dialect, arguments.name,
                           fmt::format("{} on {} threads, {}", info.backend, info.threads, info.numerics)};
  if (model.name.empty())
    model.name = info.model == "embedded" ? "hadal" : std::filesystem::path(info.model).filename().string();
  if (model.name.empty()) model.name = "hadal";
  serve::ServerOptions& options = arguments.server;
  options.notice = notice;
  options.scheduler.notice = notice;
  if (!arguments.quiet) options.log = log_line;
  HADAL_ASSIGN_OR_RETURN(const std::unique_ptr<serve::Server> server,
                         serve::Server::start(std::move(model), options));
  notice(fmt::format("listening on http://{}:{}", options.http.host, server->port()));

  int signal = 0;
  sigwait(&signals, &signal);
  notice("shutting down; a second signal ends at once");
  std::thread impatient([&signals] {
    int again = 0;
    sigwait(&signals, &again);
    std::_Exit(130);
  });
  impatient.detach();
  server->drain(std::chrono::seconds(arguments.grace_seconds));
  return {};
}

}  // namespace

void register_serve(CLI::App& app, Outcome& outcome) {
  auto* command = app.add_subcommand("serve", "The API server and the web page");
  auto arguments = std::make_shared<ServeArguments>();
  serve::ServerOptions& server = arguments->server;
  server.http.port = 8080;
  server.scheduler.max_running = 16;
  add_engine_options(*command, arguments->engine);
  command->add_option("--host", server.http.host, "Address to listen on")->capture_default_str();
  command->add_option("--port", server.http.port, "Port; 0 for a free one")->capture_default_str();
  command
      ->add_option("--api-key-file", arguments->key_file,
                   "A file with one API key per line, or sha256:HEX of one")
      ->type_name("FILE");
  command->add_flag("--no-key", server.open_to_all, "Let everybody who reaches --host use this server");
  command->add_option("--allow-host", server.allowed_hosts,
                      "Another name that this server goes by (Host header)");
  command->add_option("--cors-origin", server.cors_origin, "An origin whose pages may use this server");
  command->add_option("--name", arguments->name, "What the API calls the model; by default its directory");
  command->add_option("--dialect", arguments->dialect, "v4 or v4-0731; by default as config.json says")
      ->check(CLI::IsMember({"v4", "v4-0731"}));
  command->add_option("--parallel", server.scheduler.max_running, "Requests that are answered at a time")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--queue", server.scheduler.max_waiting, "Requests that may wait beyond them")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--per-key", server.scheduler.max_per_tenant, "Requests of one key at a time; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--ctx", server.scheduler.context, "Most tokens of a sequence; 0: what fits")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--chunk", server.scheduler.chunk_tokens, "Prompt tokens per forward")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command
      ->add_option(
          "--state-memory", server.scheduler.state_bytes,
          "Memory for the states of sequences and the prefix cache, and an eighth more for the tokens "
          "of sampled turns; by default 2G")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("BYTES");
  command
      ->add_option("--snapshot", server.scheduler.snapshot_tokens,
                   "A snapshot every so many tokens of a prompt")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--cache-dir", server.cache_directory, "Keep prefixes in this directory as well")
      ->envname("HADAL_CACHE_DIR")
      ->type_name("DIR");
  command->add_option("--cache-size", server.cache_bytes, "Bytes that it may take")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("10G")
      ->type_name("BYTES");
  command->add_option("--cache-windows", arguments->windows, "Window rows on disk: periodic, full or none")
      ->check(CLI::IsMember({"periodic", "full", "none"}))
      ->capture_default_str();
  command
      ->add_option("--prices", arguments->price_file,
                   "JSON with cache_hit, cache_miss and output per million tokens")
      ->type_name("FILE");
  command
      ->add_option("--grace", arguments->grace_seconds,
                   "Seconds that answers have to end when the server does")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("-q,--quiet", arguments->quiet, "No line per request on stderr");
  command->footer("Example: hadal serve --port 8080 --cache-dir ~/.cache/hadal");
  command->callback([arguments, &outcome] {
    if (const Status done = serve(*arguments); !done) outcome.exit_code = report(done.error());
  });
}

}  // namespace hadal::cli
