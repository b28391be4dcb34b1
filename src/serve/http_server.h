// HTTP/1.1 over TCP, as far as an API server needs it: requests in whole, answers in whole or as a stream,
// and the knowledge of when a client has left. Everything about it is bounded: connections, headers, bodies,
// time, and what waits for a client that does not read.
//
// The only file pair that knows Boost.Asio and Boost.Beast. TLS is for a proxy in front (docs/serving.md).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hadal/error.h>

namespace hadal::serve {

struct HttpRequest {
  std::string method;
  std::string path;                                          // without the query, as it came
  std::string query;                                         // behind the '?'
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case, in the order they came
  std::string body;
  std::string peer;  // address of the client

  // The first of this name (lower case), or "".
  std::string_view header(std::string_view name) const;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The answer to one request: send(), or begin(), any number of write() and end(). From any thread; calls for
// a client that has left do nothing.
class HttpReply {
 public:
  HttpReply() = default;
  HttpReply(const HttpReply&) = delete;
  HttpReply& operator=(const HttpReply&) = delete;
  virtual ~HttpReply() = default;

  virtual void send(int status, HttpHeaders headers, std::string body) = 0;
  virtual void begin(int status, HttpHeaders headers) = 0;
  virtual void write(std::string piece) = 0;
  virtual void end() = 0;
  // Called once, on a thread of the server, if the client leaves (or stops reading) before the end.
  virtual void on_close(std::function<void()> left) = 0;
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  // 0: one that is free
  int threads = 4;
  std::size_t max_connections = 1024;
  std::uint32_t max_header_bytes = 64 << 10;
  std::uint64_t max_body_bytes = 32 << 20;
  std::chrono::milliseconds header_timeout{20'000};
  std::chrono::milliseconds idle_timeout{120'000};  // between the requests of a connection
  // A body may take body_timeout and a second for every min_body_rate bytes.
  std::chrono::milliseconds body_timeout{15'000};
  std::uint64_t min_body_rate = 64 << 10;
  std::chrono::milliseconds write_timeout{30'000};  // without the client reading anything
  std::size_t max_unwritten_bytes = 8 << 20;        // that wait for a slow client; more, and it is dropped
};

class HttpServer {
 public:
  // Called on a thread of the server, which serves others meanwhile only if there are more threads.
  using Handler = std::function<void(HttpRequest, std::shared_ptr<HttpReply>)>;
  // The body (JSON) for a request that did not get as far as the handler; the path may be empty.
  using ErrorBody = std::function<std::string(int status, std::string_view path, std::string_view message)>;

  // Listens at once. Errors: io, saying which address.
  static Result<std::unique_ptr<HttpServer>> start(HttpOptions options, Handler handler,
                                                   ErrorBody error_body);
  virtual ~HttpServer() = default;
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  virtual std::uint16_t port() const = 0;
  virtual std::int64_t connections() const = 0;
  // No new connections; those that are idle are closed, the others after their present answer.
  virtual void stop_accepting() = 0;

 protected:
  HttpServer() = default;
};

// The text for a status: "Not Found".
std::string_view reason_phrase(int status);

}  // namespace hadal::serve
