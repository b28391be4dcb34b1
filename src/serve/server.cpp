#include "serve/server.h"

#include <algorithm>
#include <random>

#include <fmt/format.h>

#include "base/memory_policy.h"
#include "engine/grammar_constraint.h"
#include "serve/embedded_files.h"
#include "serve/fields.h"
#include "serve/prompt.h"
#include "serve/turn.h"
#include "text/json_value.h"

namespace hadal::serve {
namespace {

// Of the memory for states, what the tokens of sampled turns may take besides.
constexpr std::int64_t kReplayShare = 8;
constexpr std::int64_t kLeastReplayBytes = std::int64_t{16} << 20;

std::int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

bool is_loopback(std::string_view host) {
  return host == "127.0.0.1" || host == "localhost" || host == "::1" || host == "[::1]";
}

// "localhost:8080" -> "localhost", "[::1]:8080" -> "[::1]"
std::string_view without_port(std::string_view host) {
  const std::size_t colon = host.rfind(':');
  if (colon == std::string_view::npos || host.find(']', colon) != std::string_view::npos) return host;
  return host.substr(0, colon);
}

struct Route {
  std::string_view path;
  bool get;
};
constexpr Route kRoutes[] = {{"/models", true},
                             {"/user/balance", true},
                             {"/metrics", true},
                             {"/version", true},
                             {"/openapi.json", true},
                             {"/state", true},
                             {"/chat/completions", false},
                             {"/completions", false},
                             {"/responses", false},
                             {"/messages", false},
                             {"/messages/count_tokens", false}};

// What counts together in the metrics: nobody can make up another.
std::string route_name(std::string_view path) {
  if (path.starts_with("/models/")) return "/models/id";
  const bool open = path == "/health" || path == "/ready" || embedded_page(path).has_value();
  const bool known = open || std::any_of(std::begin(kRoutes), std::end(kRoutes),
                                         [&](const Route& route) { return route.path == path; });
  return known ? std::string(path) : "other";
}

// Every path is served with and without /v1, and under the roots of DeepSeek's API.
std::string_view normal_path(std::string_view path) {
  for (const std::string_view root : {"/anthropic", "/beta", "/v1"}) {
    if (path.starts_with(root) && (path.size() == root.size() || path[root.size()] == '/'))
      path.remove_prefix(root.size());
  }
  return path;
}

}  // namespace

Result<Prices> parse_prices(std::string_view text) {
  HADAL_ASSIGN_OR_RETURN(const JsonValue json, parse_json(text));
  std::optional<ApiError> error;
  Fields fields(json, "", error);
  Prices prices;
  prices.cache_hit = fields.number("cache_hit", 0, 0, 1e9);
  prices.cache_miss = fields.number("cache_miss", 0, 0, 1e9);
  prices.output = fields.number("output", 0, 0, 1e9);
  prices.currency = fields.string("currency", "USD");
  if (error) return fail(ErrorCode::invalid_argument, error->message);
  return prices;
}

struct Server::Exchange {
  HttpRequest request;
  std::shared_ptr<HttpReply> reply;
  std::string id;         // x-request-id
  std::string_view path;  // normal
  Api api = Api::other;
  std::string key;  // the id of the key
  SchedulerClock::time_point began = SchedulerClock::now();
};

Server::Server(ServedModel model, ServerOptions options)
    : model_(std::move(model)), options_(std::move(options)), started_at_(unix_seconds()) {}

Result<std::unique_ptr<Server>> Server::start(ServedModel model, ServerOptions options) {
  if (!is_loopback(options.http.host) && options.keys.empty() && !options.open_to_all) {
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("{} can be reached by others: give an --api-key-file, or say --no-key if everybody may "
                    "use this server",
                    options.http.host));
  }
  std::unique_ptr<Server> server(new Server(std::move(model), std::move(options)));
  HADAL_RETURN_IF_ERROR(server->open());
  return server;
}

Status Server::open() {
  HADAL_ASSIGN_OR_RETURN(salt_, namespace_salt(options_.cache_directory));
  if (!options_.cache_directory.empty()) {
    DiskCacheOptions disk;
    disk.directory = options_.cache_directory;
    disk.budget_bytes = options_.cache_bytes;
    disk.fingerprint = model_.runner->fingerprint();
    disk.windows = options_.cache_windows;
    disk.notice = options_.notice;
    HADAL_ASSIGN_OR_RETURN(disk_, DiskCache::open(model_.runner->layout(), std::move(disk)));
  }
  if (options_.scheduler.state_bytes == 0) options_.scheduler.state_bytes = SchedulerOptions{}.state_bytes;
  replay_ = std::make_unique<ReplayStore>(
      std::max(kLeastReplayBytes, options_.scheduler.state_bytes / kReplayShare), disk_.get());
  grammars_ = std::make_unique<GrammarCache>(model_.tokenizer, *model_.dialect);
  scheduler_ = std::make_unique<Scheduler>(*model_.runner, disk_.get(), options_.scheduler);
  keeper_ = std::thread([this] { keep_alive(); });
  const auto error_body = [this](int status, std::string_view path, std::string_view message) {
    metrics_.add_response("malformed", status);
    return to_text(from_status(status, message).body(api_of_path(path)));
  };
  HADAL_ASSIGN_OR_RETURN(http_, HttpServer::start(
                                    options_.http,
                                    [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
                                      handle(std::move(request), std::move(reply));
                                    },
                                    error_body));
  return {};
}

// First whoever submits, then whoever calls back, then what both use.
Server::~Server() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopping_.notify_all();
  if (keeper_.joinable()) keeper_.join();
  draining_ = true;
  if (http_) http_->stop_accepting();
  scheduler_.reset();
  http_.reset();
}

void Server::drain(std::chrono::milliseconds grace) {
  draining_ = true;
  http_->stop_accepting();
  scheduler_->drain(grace);
}

void Server::keep_alive() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    stopping_.wait_for(lock, std::chrono::milliseconds(500));
    std::vector<std::shared_ptr<Turn>> alive;
    for (auto turn = turns_.begin(); turn != turns_.end();) {
      if (auto held = turn->lock()) {
        alive.push_back(std::move(held));
        ++turn;
      } else {
        turn = turns_.erase(turn);
      }
    }
    lock.unlock();
    for (const auto& turn : alive) turn->keep_alive_after(options_.keep_alive);
    alive.clear();
    release_memory();
    lock.lock();
  }
}

// Requests come and go by the thousand; what they leave behind in the heap goes back when it has become
// much. That takes milliseconds, and happens when memory has grown by a sixteenth and this. States have
// slabs.
void Server::release_memory() {
  constexpr std::int64_t kLeast = std::int64_t{32} << 20;
  if (resident_memory_bytes() < kept_bytes_ + kept_bytes_ / 16 + kLeast) return;
  release_free_memory();
  kept_bytes_ = resident_memory_bytes();
}

void Server::handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  Exchange exchange;
  exchange.request = std::move(request);
  exchange.reply = std::move(reply);
  exchange.id = "req_" + ids_.next();
  exchange.path = normal_path(exchange.request.path);
  exchange.api = api_of_path(exchange.request.path);
  try {
    route(exchange);
  } catch (const std::exception& error) {  // of the standard library: out of memory, most likely
    if (options_.notice) options_.notice(fmt::format("{}: {}", exchange.id, error.what()));
    answer_error(exchange, {ApiError::Kind::internal, "the server failed to answer this request", "", 0});
  }
}

void Server::answer(Exchange& exchange, int status, std::string body, std::string type) {
  HttpHeaders headers = {{"Content-Type", std::move(type)}, {"x-request-id", exchange.id}};
  if (!options_.cors_origin.empty())
    headers.emplace_back("Access-Control-Allow-Origin", options_.cors_origin);
  log_other(exchange, status);
  exchange.reply->send(status, std::move(headers), std::move(body));
}

void Server::answer_error(Exchange& exchange, const ApiError& error) {
  HttpHeaders headers = error.headers();
  headers.emplace_back("x-request-id", exchange.id);
  headers.emplace_back("request-id", exchange.id);
  const int status = error.status(exchange.api);
  log_other(exchange, status);
  exchange.reply->send(status, std::move(headers), to_text(error.body(exchange.api)));
}

// A page of another site may make a browser send requests here, under a name of its own for this address; it
// cannot choose what the Host and Origin headers say.
std::optional<ApiError> Server::check_origin(const HttpRequest& request) const {
  const std::string_view host = without_port(request.header("host"));
  const auto& allowed = options_.allowed_hosts;
  const bool known = is_loopback(host) || host == options_.http.host ||
                     std::find(allowed.begin(), allowed.end(), host) != allowed.end();
  // Who knows a key is no page of another site.
  const bool open = allowed.empty() && !is_loopback(options_.http.host) && !options_.keys.empty();
  if (!known && !open) {
    return ApiError{ApiError::Kind::permission,
                    "this server does not go by that Host; name it with --allow-host if it should", "", 0};
  }
  std::string_view origin = request.header("origin");
  if (origin.empty() || origin == options_.cors_origin) return std::nullopt;
  if (const std::size_t slashes = origin.find("://"); slashes != std::string_view::npos) {
    if (origin.substr(slashes + 3) == request.header("host")) return std::nullopt;
  }
  return ApiError{ApiError::Kind::permission, "pages of this origin may not use this server", "", 0};
}

void Server::route(Exchange& exchange) {
  const HttpRequest& request = exchange.request;
  const std::string_view path = exchange.path;
  const bool reads = request.method == "GET" || request.method == "HEAD";
  if (path == "/health") return answer(exchange, 200, R"({"status":"ok"})");
  if (path == "/ready") {
    if (!draining_) return answer(exchange, 200, R"({"status":"ready"})");
    return answer(exchange, 503, R"({"status":"draining"})");
  }
  if (const auto error = check_origin(request)) return answer_error(exchange, *error);
  if (request.method == "OPTIONS") {
    HttpHeaders headers = {{"Allow", "GET, HEAD, POST, OPTIONS"}, {"x-request-id", exchange.id}};
    if (!options_.cors_origin.empty()) {
      headers.emplace_back("Access-Control-Allow-Origin", options_.cors_origin);
      headers.emplace_back("Access-Control-Allow-Headers",
                           "authorization, content-type, x-api-key, anthropic-version");
      headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    }
    log_other(exchange, 204);
    return exchange.reply->send(204, std::move(headers), "");
  }
  // The page itself says nothing about this server; what it then asks for needs the key.
  if (const auto file = embedded_page(path); reads && file) {
    log_other(exchange, 200);
    return exchange.reply->send(
        200,
        {{"Content-Type", std::string(file->type)},
         {"Content-Security-Policy",
          "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
         {"X-Content-Type-Options", "nosniff"},
         {"Referrer-Policy", "no-referrer"},
         {"Cache-Control", "no-cache"},
         {"x-request-id", exchange.id}},
        std::string(file->text));
  }
  const auto key = options_.keys.identify(request);
  if (!key) {
    return answer_error(exchange,
                        {ApiError::Kind::authentication,
                         "no valid API key: send it as Authorization: Bearer or as x-api-key", "", 0});
  }
  exchange.key = *key;

  const bool one_model = path.starts_with("/models/");
  const auto* const route =
      std::find_if(std::begin(kRoutes), std::end(kRoutes), [&](const Route& r) { return r.path == path; });
  if (route == std::end(kRoutes) && !one_model)
    return answer_error(exchange, {ApiError::Kind::not_found, "there is nothing at this path", "", 0});
  if ((one_model || route->get) != reads && !(request.method == "POST" && !one_model && !route->get))
    return answer_error(exchange, {ApiError::Kind::method, "this path does not take this method", "", 0});
  if (one_model) {
    if (path.substr(8) != model_.name)
      return answer_error(exchange, {ApiError::Kind::not_found, "there is no such model here", "model", 0});
    return answer(
        exchange, 200,
        to_text({{"id", model_.name}, {"object", "model"}, {"created", started_at_}, {"owned_by", "hadal"}}));
  }
  if (path == "/models") return answer(exchange, 200, models());
  if (path == "/version") return answer(exchange, 200, to_text({{"version", HADAL_VERSION}}));
  if (path == "/state") return answer(exchange, 200, state());
  if (path == "/openapi.json") return answer(exchange, 200, std::string(embedded_openapi()));
  if (path == "/user/balance") {
    return answer(exchange, 200,
                  R"({"is_available":true,"balance_infos":[{"currency":"USD","total_balance":"0.00",)"
                  R"("granted_balance":"0.00","topped_up_balance":"0.00"}]})");
  }
  if (path == "/metrics") {
    std::optional<DiskCache::Stats> disk;
    if (disk_) disk = disk_->stats();
    return answer(exchange, 200,
                  metrics_.print(scheduler_->stats(), disk ? &*disk : nullptr,
                                 http_ ? http_->connections() : 0, model_.name),
                  "text/plain; version=0.0.4; charset=utf-8");
  }
  if (path == "/messages/count_tokens") return count_tokens(exchange);
  generate(exchange);
}

// One object that both the OpenAI and the Anthropic SDK (and Codex, which looks for `models`) can read.
std::string Server::models() const {
  const Json model = {{"id", model_.name},
                      {"object", "model"},
                      {"created", started_at_},
                      {"owned_by", "hadal"},
                      {"type", "model"},
                      {"display_name", model_.name},
                      {"created_at", "2026-01-01T00:00:00Z"},
                      {"max_model_len", scheduler_->context()}};
  const Json codex = {{"slug", model_.name},
                      {"display_name", model_.name},
                      {"context_window", scheduler_->context()},
                      {"supported_in_api", true},
                      {"visibility", "list"}};
  return to_text({{"object", "list"},
                  {"data", {model}},
                  {"has_more", false},
                  {"first_id", model_.name},
                  {"last_id", model_.name},
                  {"models", {codex}}});
}

std::string Server::state() const {
  const SchedulerStats s = scheduler_->stats();
  Json json = {{"model", model_.name},
               {"description", model_.description},
               {"context", scheduler_->context()},
               {"draining", draining_.load()},
               {"uptime_seconds", unix_seconds() - started_at_},
               {"running", s.running},
               {"waiting", s.waiting},
               {"state_bytes", s.state_bytes},
               {"state_budget", s.state_budget},
               {"snapshots", s.snapshots},
               {"prefix_queries", s.prefix_queries},
               {"prefix_hits", s.prefix_hits},
               {"prompt_tokens", s.prompt_tokens},
               {"generated_tokens", s.generated_tokens},
               {"preemptions", s.preemptions},
               {"memory_bytes", resident_memory_bytes()}};
  const ReplayStore::Stats turns = replay_->stats();
  json["turns"] = {{"count", turns.count}, {"bytes", turns.bytes}, {"budget", turns.budget}};
  if (disk_) {
    const DiskCache::Stats disk = disk_->stats();
    json["disk"] = {{"files", disk.files},     {"bytes", disk.bytes},   {"budget", disk.budget},
                    {"pending", disk.pending}, {"stored", disk.stored}, {"loads", disk.loaded}};
  }
  return to_text(json);
}

namespace {

ApiResult<Request> read_request(const HttpRequest& http, Api api, const RequestLimits& limits,
                                bool counting) {
  if (!http.header("content-encoding").empty() && http.header("content-encoding") != "identity")
    return tl::unexpected(invalid("a compressed body is not taken"));
  auto body = parse_json(http.body);
  if (!body) return tl::unexpected(invalid("the body is not valid: " + body.error().message()));
  switch (api) {
    case Api::messages:
      return read_messages_request(*body, limits, counting);
    case Api::responses:
      return read_responses_request(*body, limits);
    case Api::completions:
      return read_completions_request(*body, limits);
    default:
      return read_chat_request(*body, limits);
  }
}

}  // namespace

Result<Prompt> Server::prompt_of(const Request& request, std::size_t choice,
                                 const std::string& name_space) const {
  const PromptContext context{model_.tokenizer, *model_.dialect, replay_.get(), name_space};
  return request.api == Api::completions ? completion_prompt(request, request.prompt_of(choice), context)
                                         : chat_prompt(request, context);
}

ApiResult<std::shared_ptr<TokenConstraint>> Server::constraint_of(const Request& request,
                                                                  const Prompt& prompt) const {
  const bool of_format = prompt.rules->body == AnswerRules::Body::json_schema ||
                         prompt.rules->body == AnswerRules::Body::json_object;
  const char* const param = !of_format                      ? "tools"
                            : request.api == Api::chat      ? "response_format"
                            : request.api == Api::responses ? "text.format"
                                                            : "output_config.format";
  const auto grammar = grammars_->get(*prompt.rules);
  if (!grammar) return tl::unexpected(invalid(grammar.error().message(), param));
  const Tokenizer& tokenizer = model_.tokenizer;
  const auto end = tokenizer.id_of(model_.dialect->eos),
             think_end = tokenizer.id_of(model_.dialect->think_end);
  if (!end || !think_end)
    return tl::unexpected(
        invalid("this model's tokenizer lacks the tokens that structured output needs", param));
  auto constraint = std::make_shared<GrammarConstraint>(*grammar, tokenizer, *end,
                                                        prompt.parser.thinking ? think_end : std::nullopt);
  if (of_format && request.continues_last && !constraint->begin_with(request.messages.back().content))
    return tl::unexpected(
        invalid("no answer that begins like the last message follows the schema", "messages"));
  return constraint;
}

void Server::count_tokens(Exchange& exchange) {
  const auto request = read_request(exchange.request, Api::messages, options_.limits, /*counting=*/true);
  if (!request) return answer_error(exchange, request.error());
  const auto prompt = prompt_of(*request, 0, cache_namespace(salt_, exchange.key, request->user));
  if (!prompt) return answer_error(exchange, from_error(prompt.error()));
  answer(exchange, 200, to_text({{"input_tokens", prompt->tokens.size()}}));
}

ApiError Server::too_long(Api api, std::int64_t tokens) const {
  const std::int64_t most = scheduler_->context();
  const std::string text =
      api == Api::messages
          ? fmt::format("prompt is too long: {} tokens > {} maximum", tokens, most)
          : fmt::format(
                "This model's maximum context length is {} tokens. However, your request has {} tokens. "
                "Please reduce the length of the messages.",
                most, tokens);
  return {ApiError::Kind::too_long, text, api == Api::messages ? "" : "messages", 0};
}

ApiError Server::refused(Api api, const Refusal& refusal, std::int64_t tokens) const {
  switch (refusal.kind) {
    case Refusal::Kind::too_long:
      return too_long(api, tokens);
    case Refusal::Kind::invalid:
      return invalid(refusal.message);
    case Refusal::Kind::tenant_limit:
      return {ApiError::Kind::rate_limit, refusal.message + "; try again in 1s", "", 1};
    case Refusal::Kind::queue_full:
      return {ApiError::Kind::unavailable, refusal.message, "", 2};
    case Refusal::Kind::draining:
      return {ApiError::Kind::unavailable, refusal.message, "", 5};
  }
  return {ApiError::Kind::internal, refusal.message, "", 0};
}

// What one choice is drawn from, but for its prompt.
ApiResult<GenerationRequest> Server::generation_of(const Exchange& exchange, const Request& request,
                                                   const Prompt& prompt) const {
  GenerationRequest generation;
  const auto length = static_cast<std::int64_t>(prompt.tokens.size());
  if (length > scheduler_->context()) return tl::unexpected(too_long(exchange.api, length));
  const std::int64_t usual = request.thinking ? options_.default_thinking_tokens : options_.default_tokens;
  const std::int64_t wanted = request.max_tokens > 0 ? request.max_tokens : usual;
  generation.max_tokens = std::min(wanted, scheduler_->context() - length + 1);
  generation.sampling = request.sampling;
  generation.rules.bias = request.logit_bias;
  generation.rules.presence_penalty = request.presence_penalty;
  generation.rules.frequency_penalty = request.frequency_penalty;
  if (prompt.rules) {
    auto constraint = constraint_of(request, prompt);
    if (!constraint) return tl::unexpected(constraint.error());
    generation.rules.constraint = std::move(*constraint);
  }
  for (const std::string_view token : {model_.dialect->eos, model_.dialect->user}) {
    if (const auto id = model_.tokenizer.id_of(token)) generation.stop_tokens.push_back(*id);
  }
  generation.top_logprobs = request.logprobs ? request.top_logprobs : 0;
  generation.tenant = exchange.key;
  generation.cache_namespace = cache_namespace(salt_, exchange.key, request.user);
  generation.boundaries = prompt.boundaries;
  return generation;
}

void Server::generate(Exchange& exchange) {
  auto read = read_request(exchange.request, exchange.api, options_.limits, /*counting=*/false);
  if (!read) return answer_error(exchange, read.error());
  if (!read->has_seed) {
    std::random_device device;
    read->sampling.seed = std::uint64_t{device()} << 32 | device();
  }
  const auto request = std::make_shared<const Request>(std::move(*read));
  const std::string name_space = cache_namespace(salt_, exchange.key, request->user);

  AnswerSetup answer;
  answer.request = request;
  answer.model = request->model.empty() ? model_.name : request->model;
  answer.created = unix_seconds();
  answer.delivery = std::make_shared<Delivery>(exchange.reply, exchange.id, exchange.api, request->stream,
                                               request->choices());
  // For the log, without the body.
  auto logged = std::make_shared<Exchange>();
  logged->request.method = exchange.request.method;
  logged->request.path = exchange.request.path;
  logged->id = exchange.id;
  logged->api = exchange.api;
  logged->key = exchange.key;

  std::vector<GenerationRequest> generations;
  std::vector<std::shared_ptr<Turn>> turns;
  std::int64_t longest = 0;
  for (std::size_t choice = 0; choice < request->choices(); ++choice) {
    const bool follows = choice % static_cast<std::size_t>(request->answers) > 0;
    auto prompt = follows ? Result<Prompt>(turns.back()->prompt()) : prompt_of(*request, choice, name_space);
    if (!prompt) return answer_error(exchange, from_error(prompt.error()));
    auto generation = generation_of(exchange, *request, *prompt);
    if (!generation) return answer_error(exchange, generation.error());
    const auto length = static_cast<std::int64_t>(prompt->tokens.size());
    longest = std::max(longest, length);
    generation->sampling.seed += choice;
    generation->prompt = std::exchange(prompt->tokens, {});
    if (follows) generation->max_tokens = generations.back().max_tokens;

    answer.turn_id = ids_.next();
    if (choice == 0) answer.response_id = answer.turn_id;
    answer.choice = choice;
    turns.push_back(std::make_shared<Turn>(
        Turn::Setup{.request = request,
                    .prompt = std::move(*prompt),
                    .prompt_tokens = length,
                    .id = answer.turn_id,
                    .name_space = name_space,
                    .tokenizer = model_.tokenizer,
                    .dialect = model_.dialect,
                    .replay = replay_.get(),
                    .answer = make_answer(answer),
                    .done = [this, logged, choice, most = generation->max_tokens](const TurnReport& report) {
                      log_turn(*logged, report, choice, most);
                    }}));
    generation->listener = turns.back();
    generations.push_back(std::move(*generation));
  }
  {
    const std::lock_guard lock(mutex_);
    turns_.insert(turns_.end(), turns.begin(), turns.end());
  }
  auto ticket = scheduler_->submit(std::move(generations));
  if (!ticket) return answer_error(exchange, refused(exchange.api, ticket.error(), longest));
  exchange.reply->on_close([ticket = *ticket] { ticket->cancel(); });
}

void Server::log_other(const Exchange& exchange, int status) {
  metrics_.add_response(route_name(exchange.path), status);
  if (!options_.log || exchange.path == "/health" || exchange.path == "/ready" || exchange.path == "/metrics")
    return;
  const double ms = std::chrono::duration<double, std::milli>(SchedulerClock::now() - exchange.began).count();
  options_.log(to_text({{"time", unix_seconds()},
                        {"request", exchange.id},
                        {"key", exchange.key},
                        {"method", exchange.request.method},
                        {"path", exchange.request.path.substr(0, 256)},
                        {"status", status},
                        {"ms", ms}}));
}

// One line for each choice; the request counts once.
void Server::log_turn(const Exchange& exchange, const TurnReport& report, std::size_t choice,
                      std::int64_t max_tokens) {
  metrics_.add(report, max_tokens);
  if (choice == 0) metrics_.add_response(normal_path(exchange.request.path), report.status);
  if (!options_.log) return;
  const GenerationEnd& end = report.end;
  const Usage& usage = report.result.usage;
  const auto ms = [](SchedulerClock::time_point a, SchedulerClock::time_point b) {
    return std::chrono::duration<double, std::milli>(b - a).count();
  };
  constexpr std::string_view kFinishes[] = {"stop", "stop_sequence", "tool_calls", "length"};
  const std::string_view finish = end.error ? "error"
                                  : end.finish == FinishReason::cancelled
                                      ? "cancelled"
                                      : kFinishes[static_cast<int>(report.result.finish)];
  Json line = {{"time", unix_seconds()},
               {"request", exchange.id},
               {"key", exchange.key},
               {"method", exchange.request.method},
               {"path", exchange.request.path.substr(0, 256)},
               {"status", report.status},
               {"finish", finish},
               {"prompt_tokens", usage.prompt_tokens},
               {"cached_tokens", usage.cached_tokens},
               {"completion_tokens", usage.completion_tokens},
               {"reasoning_tokens", usage.reasoning_tokens},
               {"queue_ms", ms(end.submitted, end.admitted)},
               {"prefill_ms", ms(end.admitted, end.first_token)},
               {"decode_ms", ms(end.first_token, end.ended)},
               {"preemptions", end.preemptions}};
  if (choice > 0) line["choice"] = choice;
  if (end.error) line["error"] = end.error->message();
  if (options_.prices) {
    const Prices& p = *options_.prices;
    line["cost"] = (static_cast<double>(usage.cached_tokens) * p.cache_hit +
                    static_cast<double>(usage.prompt_tokens - usage.cached_tokens) * p.cache_miss +
                    static_cast<double>(usage.completion_tokens) * p.output) /
                   1e6;
    line["currency"] = p.currency;
  }
  options_.log(to_text(line));
}

}  // namespace hadal::serve
