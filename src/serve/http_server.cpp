#include "serve/http_server.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include <boost/asio.hpp>
#include <boost/beast.hpp>
#include <fmt/format.h>

namespace hadal::serve {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

class Connection;

// What connections share with the server, which may be gone before the last of them.
struct Shared {
  Shared(HttpOptions given, HttpServer::Handler on_request, HttpServer::ErrorBody on_error)
      : options(std::move(given)), handler(std::move(on_request)), error_body(std::move(on_error)) {}

  HttpOptions options;
  HttpServer::Handler handler;
  HttpServer::ErrorBody error_body;
  asio::io_context io;
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::set<Connection*> connections;
};

// One client. Everything below runs on its strand; replies post to it.
class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Shared> shared, tcp::socket socket)
      : shared_(std::move(shared)),
        socket_(std::move(socket)),
        read_timer_(socket_.get_executor()),
        write_timer_(socket_.get_executor()) {
    beast::error_code ignored;
    peer_ = socket_.remote_endpoint(ignored).address().to_string();
    socket_.set_option(tcp::no_delay(true), ignored);
    const std::lock_guard lock(shared_->mutex);
    shared_->connections.insert(this);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() {
    const std::lock_guard lock(shared_->mutex);
    shared_->connections.erase(this);
  }

  void start() {
    asio::dispatch(socket_.get_executor(), [self = shared_from_this()] { self->read_header(); });
  }
  template <class F>
  void post(F&& f) {
    asio::post(socket_.get_executor(), std::forward<F>(f));
  }
  void close_if_idle() {
    post([self = shared_from_this()] {
      if (!self->answering_ && self->buffer_.size() == 0) self->close();
    });
  }

  // Of the reply with this serial number; others are of a request that is over.
  void send(std::uint64_t serial, int status, const HttpHeaders& headers, std::string body);
  void begin(std::uint64_t serial, int status, const HttpHeaders& headers);
  void write(std::uint64_t serial, std::string piece);
  void end(std::uint64_t serial);
  void on_close(std::uint64_t serial, std::function<void()> left);
  void close();

 private:
  void read_header();
  void read_body();
  void take_request();
  void watch();
  void refuse(int status, std::string_view path, std::string_view message);
  std::string head(int status, const HttpHeaders& headers, std::optional<std::size_t> length);
  void queue(std::string bytes);
  void write_next();
  void finish_reply();
  void arm(asio::steady_timer& timer, std::chrono::milliseconds after);

  std::shared_ptr<Shared> shared_;
  tcp::socket socket_;
  asio::steady_timer read_timer_, write_timer_;
  std::string peer_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  bool first_ = true;

  std::uint64_t serial_ = 0;  // of the present request
  bool answering_ = false;
  bool keep_alive_ = false, chunked_ = false, head_only_ = false, begun_ = false, ended_ = false;
  bool watching_ = false, closed_ = false, lingering_ = false;
  std::function<void()> left_;

  std::deque<std::string> unwritten_;
  std::size_t unwritten_bytes_ = 0;
  bool writing_ = false;
};

class Reply final : public HttpReply {
 public:
  Reply(std::shared_ptr<Connection> connection, std::uint64_t serial)
      : connection_(std::move(connection)), serial_(serial) {}

  void send(int status, HttpHeaders headers, std::string body) override {
    connection_->post([c = connection_, s = serial_, status, headers = std::move(headers),
                       body = std::move(body)]() mutable { c->send(s, status, headers, std::move(body)); });
  }
  void begin(int status, HttpHeaders headers) override {
    connection_->post([c = connection_, s = serial_, status, headers = std::move(headers)] {
      c->begin(s, status, headers);
    });
  }
  void write(std::string piece) override {
    connection_->post([c = connection_, s = serial_, piece = std::move(piece)]() mutable {
      c->write(s, std::move(piece));
    });
  }
  void end() override {
    connection_->post([c = connection_, s = serial_] { c->end(s); });
  }
  void on_close(std::function<void()> left) override {
    connection_->post([c = connection_, s = serial_, left = std::move(left)]() mutable {
      c->on_close(s, std::move(left));
    });
  }

 private:
  std::shared_ptr<Connection> connection_;
  std::uint64_t serial_;
};

// A timer that is armed again or cancelled leaves the old wait with an error.
void Connection::arm(asio::steady_timer& timer, std::chrono::milliseconds after) {
  timer.expires_after(after);
  timer.async_wait([weak = weak_from_this()](beast::error_code error) {
    if (error) return;
    if (const auto self = weak.lock()) self->close();
  });
}

void Connection::close() {
  if (closed_) return;
  closed_ = true;
  read_timer_.cancel();
  write_timer_.cancel();
  beast::error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
  if (const auto left = std::exchange(left_, nullptr); left && answering_) left();
}

void Connection::read_header() {
  if (shared_->stopping && !first_) return close();
  parser_.emplace();
  parser_->header_limit(shared_->options.max_header_bytes);
  parser_->body_limit(shared_->options.max_body_bytes);
  arm(read_timer_,
      first_ || buffer_.size() > 0 ? shared_->options.header_timeout : shared_->options.idle_timeout);
  first_ = false;
  http::async_read_header(socket_, buffer_, *parser_,
                          [self = shared_from_this()](beast::error_code error, std::size_t /*n*/) {
                            if (error == http::error::end_of_stream || self->closed_) return self->close();
                            if (error == http::error::header_limit)
                              return self->refuse(431, "", "the header of the request is too large");
                            if (error == http::error::body_limit)
                              return self->refuse(413, "", "the body of the request is too large");
                            if (error.category() == http::make_error_code(http::error::bad_method).category())
                              return self->refuse(400, "", "this is not an HTTP/1.1 request");
                            if (error) return self->close();
                            self->read_body();
                          });
}

void Connection::read_body() {
  const auto& message = parser_->get();
  const std::string_view target(message.target().data(), message.target().size());
  const auto length = parser_->content_length();
  if (length && *length > shared_->options.max_body_bytes)
    return refuse(413, target, "the body of the request is too large");
  // Both would mean that somebody on the way may see another end of this request than we do.
  if (message.count(http::field::transfer_encoding) > 0 && message.count(http::field::content_length) > 0)
    return refuse(400, target, "a request cannot have both a length and an encoding");
  // Any other encoding would leave it open where the body ends, and the rest would be read as requests.
  const std::size_t encodings = message.count(http::field::transfer_encoding);
  if (encodings > 1 ||
      (encodings == 1 && !beast::iequals(message[http::field::transfer_encoding], "chunked")))
    return refuse(400, target, "the only transfer encoding is chunked");
  const std::uint64_t most = length ? *length : shared_->options.max_body_bytes;
  arm(read_timer_, shared_->options.body_timeout +
                       std::chrono::milliseconds(1000 * most / shared_->options.min_body_rate));
  if (beast::iequals(message[http::field::expect], "100-continue")) {
    queue("HTTP/1.1 100 Continue\r\n\r\n");
  }
  http::async_read(socket_, buffer_, *parser_,
                   [self = shared_from_this()](beast::error_code error, std::size_t /*n*/) {
                     if (self->closed_) return;
                     if (error == http::error::body_limit)
                       return self->refuse(413, "", "the body of the request is too large");
                     if (error) return self->close();
                     self->take_request();
                   });
}

void Connection::take_request() {
  read_timer_.cancel();
  auto message = parser_->release();
  ++serial_;
  answering_ = true;
  begun_ = ended_ = false;
  keep_alive_ = message.keep_alive() && !shared_->stopping;
  chunked_ = message.version() >= 11;
  head_only_ = message.method() == http::verb::head;
  HttpRequest request;
  request.method = std::string(message.method_string());
  const std::string target(message.target());
  const std::size_t question = target.find('?');
  request.path = target.substr(0, question);
  if (question != std::string::npos) request.query = target.substr(question + 1);
  for (const auto& field : message) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    request.headers.emplace_back(std::move(name), std::string(field.value()));
  }
  request.body = std::move(message.body());
  request.peer = peer_;
  watch();
  shared_->handler(std::move(request), std::make_shared<Reply>(shared_from_this(), serial_));
}

// Reads while an answer is on its way, for no other reason than to see the client leave. What it sends early
// stays in the buffer for the next request; when that is much, the watch ends.
void Connection::watch() {
  if (watching_ || closed_ || !answering_ || buffer_.size() >= shared_->options.max_header_bytes) return;
  watching_ = true;
  socket_.async_read_some(
      buffer_.prepare(4096), [self = shared_from_this()](beast::error_code error, std::size_t n) {
        self->watching_ = false;
        if (self->closed_) return;
        const bool called_off = error == asio::error::operation_aborted && !self->answering_;
        if (error && !called_off) return self->close();
        self->buffer_.commit(n);
        if (self->answering_) return self->watch();
        self->read_header();  // the answer went out meanwhile, and waited for this read
      });
}

// An answer without the handler; the connection ends with it.
void Connection::refuse(int status, std::string_view path, std::string_view message) {
  ++serial_;
  answering_ = true;
  begun_ = ended_ = keep_alive_ = head_only_ = false;
  chunked_ = true;
  send(serial_, status, {{"Content-Type", "application/json"}},
       shared_->error_body(status, path.substr(0, path.find('?')), message));
}

std::string Connection::head(int status, const HttpHeaders& headers, std::optional<std::size_t> length) {
  std::string text = fmt::format("HTTP/1.1 {} {}\r\n", status, reason_phrase(status));
  for (const auto& [name, value] : headers) {
    text += name;
    text += ": ";
    for (const char c : value) text += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;  // no header splitting
    text += "\r\n";
  }
  if (length) {
    text += fmt::format("Content-Length: {}\r\n", *length);
  } else if (chunked_) {
    text += "Transfer-Encoding: chunked\r\n";
  } else {
    keep_alive_ = false;
  }
  text += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  return text;
}

void Connection::send(std::uint64_t serial, int status, const HttpHeaders& headers, std::string body) {
  if (serial != serial_ || closed_ || begun_) return;
  begun_ = ended_ = true;
  if (shared_->stopping) keep_alive_ = false;
  std::string text = head(status, headers, body.size());
  if (!head_only_) text += body;
  queue(std::move(text));
}

void Connection::begin(std::uint64_t serial, int status, const HttpHeaders& headers) {
  if (serial != serial_ || closed_ || begun_) return;
  begun_ = true;
  queue(head(status, headers, std::nullopt));
}

void Connection::write(std::uint64_t serial, std::string piece) {
  if (serial != serial_ || closed_ || !begun_ || ended_ || piece.empty() || head_only_) return;
  if (chunked_) piece = fmt::format("{:x}\r\n", piece.size()) + piece + "\r\n";
  queue(std::move(piece));
}

void Connection::end(std::uint64_t serial) {
  if (serial != serial_ || closed_ || !begun_ || ended_) return;
  ended_ = true;
  if (chunked_ && !head_only_) {
    queue("0\r\n\r\n");
  } else if (!writing_) {
    finish_reply();
  }
}

void Connection::on_close(std::uint64_t serial, std::function<void()> left) {
  if (serial != serial_ || !answering_) return;
  if (closed_) return left();
  left_ = std::move(left);
}

void Connection::queue(std::string bytes) {
  unwritten_bytes_ += bytes.size();
  unwritten_.push_back(std::move(bytes));
  // A whole answer may be as large as it is; a stream must be read as it comes.
  if (!ended_ && unwritten_bytes_ > shared_->options.max_unwritten_bytes) return close();
  if (!writing_) write_next();
}

void Connection::write_next() {
  writing_ = true;
  arm(write_timer_, shared_->options.write_timeout);
  socket_.async_write_some(asio::buffer(unwritten_.front()),
                           [self = shared_from_this()](beast::error_code error, std::size_t n) {
                             self->writing_ = false;
                             if (self->closed_) return;
                             if (error) return self->close();
                             self->write_timer_.cancel();
                             self->unwritten_bytes_ -= n;
                             self->unwritten_.front().erase(0, n);
                             if (self->unwritten_.front().empty()) self->unwritten_.pop_front();
                             if (!self->unwritten_.empty()) return self->write_next();
                             if (self->ended_ && self->answering_) self->finish_reply();
                           });
}

void Connection::finish_reply() {
  answering_ = false;
  left_ = nullptr;
  if (!keep_alive_) {
    // Everything is written; a client that is still sending must get to read it before the reset.
    beast::error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    if (watching_) {
      arm(read_timer_, std::chrono::milliseconds(500));
      return;
    }
    if (!lingering_) {
      lingering_ = true;
      arm(read_timer_, std::chrono::milliseconds(500));
      auto sink = std::make_shared<std::array<char, 4096>>();
      socket_.async_read_some(asio::buffer(*sink), [self = shared_from_this(), sink](
                                                       beast::error_code, std::size_t) { self->close(); });
    }
    return;
  }
  // A read that waits for the client to leave becomes the read of the next request.
  if (watching_) {
    arm(read_timer_, shared_->options.idle_timeout);
    if (buffer_.size() > 0) {  // which has begun already, and may be here in whole
      beast::error_code ignored;
      socket_.cancel(ignored);
    }
    return;
  }
  read_header();
}

class BeastServer final : public HttpServer {
 public:
  explicit BeastServer(std::shared_ptr<Shared> shared) : shared_(std::move(shared)), acceptor_(shared_->io) {}
  BeastServer(const BeastServer&) = delete;
  BeastServer& operator=(const BeastServer&) = delete;
  ~BeastServer() override {
    shared_->stopping = true;
    shared_->io.stop();
    for (std::thread& thread : threads_) thread.join();
    // Handlers own connections, and those the context that keeps the handlers: run what is left, to part
    // them.
    beast::error_code ignored;
    acceptor_.close(ignored);
    for (const auto& connection : all_connections()) connection->close();
    shared_->io.restart();
    shared_->io.poll();
  }

  Status listen() {
    const HttpOptions& options = shared_->options;
    beast::error_code error;
    const auto failed = [&](std::string_view what) {
      return fail(ErrorCode::io,
                  fmt::format("cannot {} {}:{}: {}", what, options.host, options.port, error.message()));
    };
    tcp::resolver resolver(shared_->io);
    const auto found =
        resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
    if (error) return failed("find the address");
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return failed("listen on");
    port_ = acceptor_.local_endpoint(error).port();
    accept();
    for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { shared_->io.run(); });
    return {};
  }

  std::uint16_t port() const override { return port_; }
  std::int64_t connections() const override {
    const std::lock_guard lock(shared_->mutex);
    return static_cast<std::int64_t>(shared_->connections.size());
  }
  void stop_accepting() override {
    shared_->stopping = true;
    asio::post(shared_->io, [this] {
      beast::error_code ignored;
      acceptor_.close(ignored);
    });
    for (const auto& connection : all_connections()) connection->close_if_idle();
  }

 private:
  std::vector<std::shared_ptr<Connection>> all_connections() const {
    std::vector<std::shared_ptr<Connection>> all;
    const std::lock_guard lock(shared_->mutex);
    for (Connection* connection : shared_->connections) {
      if (auto alive = connection->weak_from_this().lock()) all.push_back(std::move(alive));
    }
    return all;
  }

  void accept() {
    acceptor_.async_accept(
        asio::make_strand(shared_->io), [this](beast::error_code error, tcp::socket socket) {
          if (shared_->stopping) return;
          if (!error) {
            const bool full = static_cast<std::size_t>(connections()) >= shared_->options.max_connections;
            if (!full) std::make_shared<Connection>(shared_, std::move(socket))->start();
          }
          accept();  // out of file descriptors too: some will be closed
        });
  }

  std::shared_ptr<Shared> shared_;
  tcp::acceptor acceptor_;
  std::uint16_t port_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [known, value] : headers) {
    if (known == name) return value;
  }
  return {};
}

Result<std::unique_ptr<HttpServer>> HttpServer::start(HttpOptions options, Handler handler,
                                                      ErrorBody error_body) {
  auto server = std::make_unique<BeastServer>(
      std::make_shared<Shared>(std::move(options), std::move(handler), std::move(error_body)));
  HADAL_RETURN_IF_ERROR(server->listen());
  return server;
}

std::string_view reason_phrase(int status) {
  const auto text = http::obsolete_reason(static_cast<http::status>(status));
  return status == 529 ? "Overloaded" : std::string_view(text.data(), text.size());
}

}  // namespace hadal::serve
