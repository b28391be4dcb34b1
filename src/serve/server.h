// The server: routes, who may use them, and the way of a request from its bytes to the scheduler and back.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <hadal/tokenizer.h>

#include "engine/disk_cache.h"
#include "engine/scheduler.h"
#include "serve/http_server.h"
#include "serve/keys.h"
#include "serve/metrics.h"
#include "serve/prompt.h"
#include "serve/replay_store.h"
#include "serve/request.h"
#include "text/chat_dialect.h"
#include "text/grammar_cache.h"

namespace hadal::serve {

class Turn;
struct TurnReport;

// Per million tokens.
struct Prices {
  double cache_hit = 0, cache_miss = 0, output = 0;
  std::string currency = "USD";
};
// {"cache_hit": 0.003, "cache_miss": 0.15, "output": 0.6, "currency": "USD"}
Result<Prices> parse_prices(std::string_view json);

struct ServerOptions {
  HttpOptions http;
  SchedulerOptions scheduler;
  ApiKeys keys;                            // none: everybody may ask
  bool open_to_all = false;                // an address that others can reach, without keys
  std::vector<std::string> allowed_hosts;  // of the Host header, beyond loopback's and http.host
  std::string cors_origin;  // that browsers' pages may come from, besides the server's own; empty: none
  RequestLimits limits;
  std::filesystem::path cache_directory;  // empty: nothing is kept on disk
  std::int64_t cache_bytes = std::int64_t{10} << 30;
  WindowStrategy cache_windows = WindowStrategy::periodic;
  std::optional<Prices> prices;
  std::chrono::seconds keep_alive{10};  // silence after which a waiting client hears something
  std::int64_t default_tokens = 8192, default_thinking_tokens = 65536;
  std::function<void(std::string_view)> log;  // a line of JSON per request
  Notice notice;
};

// What is served.
struct ServedModel {
  Runner* runner = nullptr;
  Tokenizer tokenizer;
  const ChatDialect* dialect = nullptr;
  std::string name;         // as the API calls it
  std::string description;  // for the page: backend, numerics
};

class Server {
 public:
  // `model.runner` must outlive the server. Errors: io, invalid_argument (an open address without keys).
  static Result<std::unique_ptr<Server>> start(ServedModel model, ServerOptions options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::uint16_t port() const { return http_->port(); }
  SchedulerStats stats() const { return scheduler_->stats(); }
  // Readiness goes, no more requests are taken; those that run have `grace` to end. Returns when all have and
  // the cache is on disk.
  void drain(std::chrono::milliseconds grace);

 private:
  struct Exchange;  // one request on its way

  Server(ServedModel model, ServerOptions options);
  Status open();
  void handle(HttpRequest request, std::shared_ptr<HttpReply> reply);
  std::optional<ApiError> check_origin(const HttpRequest& request) const;
  void route(Exchange& exchange);
  void generate(Exchange& exchange);
  void count_tokens(Exchange& exchange);
  // What holds the answer to the rules of its prompt.
  ApiResult<std::shared_ptr<TokenConstraint>> constraint_of(const Request& request,
                                                            const Prompt& prompt) const;
  Result<Prompt> prompt_of(const Request& request, std::size_t choice, const std::string& name_space) const;
  ApiResult<GenerationRequest> generation_of(const Exchange& exchange, const Request& request,
                                             const Prompt& prompt) const;
  ApiError too_long(Api api, std::int64_t tokens) const;
  ApiError refused(Api api, const Refusal& refusal, std::int64_t tokens) const;
  std::string models() const;
  std::string state() const;
  void answer(Exchange& exchange, int status, std::string body, std::string type = "application/json");
  void answer_error(Exchange& exchange, const ApiError& error);
  void log_turn(const Exchange& exchange, const TurnReport& report, std::size_t choice,
                std::int64_t max_tokens);
  void log_other(const Exchange& exchange, int status);
  void keep_alive();
  void release_memory();

  ServedModel model_;
  ServerOptions options_;
  std::int64_t started_at_ = 0;
  std::string salt_;
  std::unique_ptr<DiskCache> disk_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ReplayStore> replay_;
  std::unique_ptr<GrammarCache> grammars_;
  IdSource ids_;
  Metrics metrics_;
  std::atomic<bool> draining_{false};

  std::mutex mutex_;
  std::condition_variable stopping_;
  bool stop_ = false;
  std::list<std::weak_ptr<Turn>> turns_;
  std::thread keeper_;
  std::int64_t kept_bytes_ = 0;  // resident when memory was last given back; the keeper's
  std::unique_ptr<HttpServer> http_;
};

}  // namespace hadal::serve
