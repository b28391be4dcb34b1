// hadal's server over a ScriptedRunner, for tests from outside:
//   scripted_server [port=N] [dialect=v4-0731] [script=FILE] [keys=FILE] [cache=DIR] [key=value ...]
// Says "listening on PORT" on stdout and runs until SIGTERM.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include <pthread.h>

#include "serve/scripted_runner.h"
#include "serve/server.h"

namespace {

using namespace hadal;

template <class T>
T must(Result<T> result) {
  if (result) return std::move(*result);
  std::fprintf(stderr, "scripted_server: %s\n", result.error().message().c_str());
  std::exit(1);
}

std::string read_text(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) std::exit(1);
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text += static_cast<char>(c);
  std::fclose(file);
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::map<std::string, std::string> given;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::size_t equals = argument.find('=');
    given[argument.substr(0, equals)] = equals == std::string::npos ? "" : argument.substr(equals + 1);
  }
  const auto text = [&](const char* key, std::string otherwise) {
    const auto found = given.find(key);
    return found == given.end() ? otherwise : found->second;
  };
  const auto number = [&](const char* key, long otherwise) {
    return given.contains(key) ? std::atol(given[key].c_str()) : otherwise;
  };

  EngineOptions engine_options;
  engine_options.threads = 1;
  const Engine engine = must(Engine::open(engine_options));
  const auto model = make_model_runner(engine);
  std::vector<test::ScriptRule> rules;
  if (given.contains("script")) {
    const JsonValue script = must(parse_json(read_text(given["script"])));
    for (const JsonValue& rule : script.items) {
      const JsonValue* turn = rule.find("turn");
      rules.push_back({rule.find("match")->text, turn == nullptr ? -1 : std::atol(turn->text.c_str()),
                       rule.find("reply")->text});
    }
  }
  test::ScriptedRunner scripted(*model, engine.tokenizer(), std::move(rules),
                                static_cast<int>(number("step_ms", 0)));
  const bool real = given.contains("model");  // the embedded model itself
  serve::ServerOptions options;
  options.http.port = static_cast<std::uint16_t>(number("port", 0));
  options.http.header_timeout = std::chrono::milliseconds(number("header_ms", 20'000));
  options.http.body_timeout = std::chrono::milliseconds(number("body_ms", 15'000));
  options.http.write_timeout = std::chrono::milliseconds(number("write_ms", 30'000));
  options.http.max_body_bytes = static_cast<std::uint64_t>(number("body_bytes", 32 << 20));
  options.http.max_unwritten_bytes = static_cast<std::size_t>(number("unwritten_bytes", 8 << 20));
  options.scheduler.max_running = number("parallel", 16);
  options.scheduler.max_waiting = number("queue", 256);
  options.scheduler.max_per_tenant = number("per_key", 0);
  options.scheduler.context = number("context", 0);
  options.scheduler.state_bytes = number("state_bytes", 0);
  options.keep_alive = std::chrono::seconds(number("keep_alive", 10));
  options.cache_directory = text("cache", "");
  options.cache_windows = must(window_strategy_from_string(text("cache_windows", "periodic")));
  if (given.contains("keys")) options.keys = must(serve::ApiKeys::load(given["keys"]));
  if (given.contains("log"))
    options.log = [](std::string_view line) {
      std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
    };
  if (given.contains("prices")) options.prices = must(serve::parse_prices(text("prices", "{}")));
  serve::ServedModel served{real ? model.get() : static_cast<Runner*>(&scripted), engine.tokenizer(),
                            must(find_dialect(text("dialect", "v4-0731"))), "scripted", "a test double"};
  const auto server = must(serve::Server::start(std::move(served), std::move(options)));
  std::printf("listening on %d\n", server->port());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  server->drain(std::chrono::milliseconds(number("grace_ms", 2000)));
  return 0;
}
