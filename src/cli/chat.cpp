// hadal chat: turns with a model whose history stays in its state, so no turn is read twice.
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <iostream>

#include <fmt/format.h>
#include <histedit.h>
#include <nlohmann/json.hpp>

#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/prompt.h"

namespace hadal::cli {
namespace {

struct ChatArguments {
  EngineOptions engine;
  SamplingOptions sampling;
  std::string system, think = "off";
  std::int64_t tokens = 4096;
};

// Lines from a terminal with editing and history, or plain lines from a pipe.
class LineReader {
 public:
  LineReader() {
    if (::isatty(STDIN_FILENO) == 0) return;
    edit_ = el_init("hadal", stdin, stdout, stderr);
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, 1000);
    el_set(edit_, EL_PROMPT, &prompt);
    el_set(edit_, EL_EDITOR, "emacs");
    el_set(edit_, EL_SIGNAL, 1);
    el_set(edit_, EL_HIST, history, history_);
  }
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;
  ~LineReader() {
    if (history_ != nullptr) history_end(history_);
    if (edit_ != nullptr) el_end(edit_);
  }

  // False at the end of the input.
  bool read(std::string& line) {
    if (edit_ == nullptr) return static_cast<bool>(std::getline(std::cin, line));
    int count = 0;
    const char* text = nullptr;
    for (;;) {
      clear_interrupt();
      text = el_gets(edit_, &count);
      if (text != nullptr && count > 0) break;
      if (!interrupted()) return false;
      // Ctrl-C a moment after a reply has ended must not cost the conversation: it drops the line.
      std::fputs("\n(Ctrl-D or /quit leaves)\n", stdout);
      el_reset(edit_);
    }
    line.assign(text, static_cast<std::size_t>(count));
    HistEvent event;
    if (line.find_first_not_of(" \n") != std::string::npos) history(history_, &event, H_ENTER, text);
    while (!line.empty() && line.back() == '\n') line.pop_back();
    return true;
  }

 private:
  static char* prompt(EditLine* /*edit*/) {
    static char text[] = "> ";
    return text;
  }

  EditLine* edit_ = nullptr;
  History* history_ = nullptr;
};

constexpr std::string_view kHelp =
    "/help            this text\n"
    "/think LEVEL     off, low, high or max, from the next turn on\n"
    "/clear           forget the conversation\n"
    "/save PATH       keep the conversation in PATH, PATH.tokens and PATH.json\n"
    "/load PATH       go on with a kept conversation\n"
    "/stats           tokens, speed, memory\n"
    "/quit            leave (Ctrl-D does too; Ctrl-C stops a reply)\n";

class Chat {
 public:
  Chat(const Engine& engine, const ChatDialect& dialect, const ChatArguments& arguments)
      : engine_(engine),
        dialect_(dialect),
        arguments_(arguments),
        think_(arguments.think),
        sequence_(engine.start()) {}

  Status turn(const std::string& text) {
    HADAL_RETURN_IF_ERROR(check_utf8(text, "the message"));
    std::vector<ChatMessage> messages;
    if (history_.empty() && !arguments_.system.empty())
      messages.push_back(text_message("system", arguments_.system));
    messages.push_back(text_message("user", text));
    ChatOptions options = chat_options(dialect_, think_);
    options.drop_thinking = false;  // what was thought is in the state already
    HADAL_ASSIGN_OR_RETURN(const auto encoded,
                           encode_turn(engine_.tokenizer(), dialect_, options, messages, history_));
    std::vector<std::int32_t> prompt = pending_;
    prompt.insert(prompt.end(), encoded.begin(), encoded.end());

    GenerationOptions generation;
    generation.max_tokens = arguments_.tokens;
    generation.sampling = arguments_.sampling;
    generation.stop_tokens = {engine_.info().eos_token};
    generation.cancelled = interrupted;
    clear_interrupt();
    HADAL_ASSIGN_OR_RETURN(last_,
                           engine_.generate(sequence_, prompt, generation, [](const GeneratedToken& token) {
                             std::fwrite(token.text.data(), 1, token.text.size(), stdout);
                             std::fflush(stdout);
                           }));
    std::printf("%s\n", last_.finish == FinishReason::cancelled ? " [stopped]" : "");
    std::fflush(stdout);

    // The reply's last token and the end of its turn are read with the next turn. A prompt that was stopped
    // halfway leaves its rest to be read then.
    const auto read = static_cast<std::size_t>(sequence_.length());
    all_.insert(all_.end(), prompt.begin(), prompt.end());
    all_.insert(all_.end(), last_.tokens.begin(), last_.tokens.end());
    all_.push_back(engine_.info().eos_token);
    pending_.assign(all_.begin() + static_cast<std::ptrdiff_t>(read), all_.end());
    all_.resize(read);
    history_.insert(history_.end(), messages.begin(), messages.end());
    history_.push_back(text_message("assistant", last_.text));
    return {};
  }

  void clear() {
    sequence_ = engine_.start();
    history_.clear();
    pending_.clear();
    all_.clear();
    last_ = {};
  }

  Status save(const std::string& path) const {
    nlohmann::ordered_json json;
    json["think"] = think_;
    json["pending"] = pending_;
    for (const ChatMessage& message : history_) {
      json["messages"].push_back({{"role", message.role}, {"content", message.content}});
    }
    HADAL_RETURN_IF_ERROR(sequence_.save(path));
    return write_file(path + ".json",
                      json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }

  Status load(const std::string& path) {
    HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(path + ".json"));
    const auto json = nlohmann::json::parse(text, nullptr, false);
    const auto bad = [&] {
      return fail(ErrorCode::corrupt, fmt::format("{}.json: not a conversation kept by /save", path));
    };
    if (!json.is_object() || !json.contains("messages") || !json["messages"].is_array() ||
        !json.contains("pending") || !json["pending"].is_array() || !json.contains("think") ||
        !json["think"].is_string()) {
      return bad();
    }
    std::vector<ChatMessage> history;
    for (const auto& message : json["messages"]) {
      if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
          !message.contains("content") || !message["content"].is_string()) {
        return bad();
      }
      history.push_back(
          text_message(message["role"].get<std::string>(), message["content"].get<std::string>()));
    }
    std::vector<std::int32_t> pending;
    for (const auto& id : json["pending"]) {
      if (!id.is_number_integer()) return bad();
      pending.push_back(id.get<std::int32_t>());
    }
    HADAL_ASSIGN_OR_RETURN(sequence_, engine_.load_sequence(path));
    history_ = std::move(history);
    pending_ = std::move(pending);
    all_ = sequence_.tokens();
    think_ = json["think"].get<std::string>();
    return {};
  }

  Status think(const std::string& level) {
    if (level != "off" && level != "low" && level != "high" && level != "max") {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("/think '{}': expected off, low, high or max", level));
    }
    think_ = level;
    return {};
  }

  void stats() const {
    std::printf("%lld tokens in the context of %lld; state %.1f MB, peak memory %.2f GB\n",
                static_cast<long long>(sequence_.length()), static_cast<long long>(engine_.info().context),
                static_cast<double>(sequence_.state_bytes()) / 1e6,
                static_cast<double>(peak_memory_bytes()) / 1e9);
    if (!last_.tokens.empty()) std::printf("last turn: %s\n", describe(last_).c_str());
  }

 private:
  const Engine& engine_;
  const ChatDialect& dialect_;
  const ChatArguments& arguments_;
  std::string think_;
  Sequence sequence_;
  std::vector<ChatMessage> history_;
  std::vector<std::int32_t> all_;      // what the sequence has read
  std::vector<std::int32_t> pending_;  // of the conversation, not yet read
  Generation last_;
};

Status chat(const ChatArguments& arguments) {
  HADAL_RETURN_IF_ERROR(arguments.sampling.validate());
  HADAL_RETURN_IF_ERROR(check_utf8(arguments.system, "the system text"));
  HADAL_ASSIGN_OR_RETURN(const Engine engine, Engine::open(arguments.engine));
  HADAL_ASSIGN_OR_RETURN(const ChatDialect* dialect, dialect_of_config(engine.info().config_json));
  Chat chat(engine, *dialect, arguments);
  catch_interrupt();
  LineReader lines;
  std::string line;
  while (lines.read(line)) {
    Status done;
    const std::size_t space = line.find(' ');
    const std::string word = line.substr(0, space);
    const std::string rest = space == std::string::npos
                                 ? ""
                                 : line.substr(line.find_first_not_of(' ', space) == std::string::npos
                                                   ? line.size()
                                                   : line.find_first_not_of(' ', space));
    if (line.find_first_not_of(' ') == std::string::npos) continue;
    if (word == "/quit") break;
    if (word == "/help")
      std::fwrite(kHelp.data(), 1, kHelp.size(), stdout);
    else if (word == "/clear")
      chat.clear();
    else if (word == "/stats")
      chat.stats();
    else if (word == "/think")
      done = chat.think(rest);
    else if (word == "/save" || word == "/load") {
      if (rest.empty())
        done = fail(ErrorCode::invalid_argument, word + " needs a path");
      else
        done = word == "/save" ? chat.save(rest) : chat.load(rest);
    } else if (word.starts_with("/")) {
      done = fail(ErrorCode::invalid_argument, fmt::format("there is no command {}; /help lists them", word));
    } else {
      done = chat.turn(line);
    }
    if (!done) report(done.error());  // and go on: nothing of the conversation is lost
    std::fflush(stdout);
  }
  return {};
}

}  // namespace

void register_chat(CLI::App& app, Outcome& outcome) {
  auto* command = app.add_subcommand("chat", "Talk with a model; /help inside lists the commands");
  auto arguments = std::make_shared<ChatArguments>();
  add_engine_options(*command, arguments->engine);
  add_sampling_options(*command, arguments->sampling);
  command->add_option("-n,--tokens", arguments->tokens, "At most so many tokens in a reply")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--system", arguments->system, "System text");
  command->add_option("--think", arguments->think, "off, low, high or max")
      ->check(CLI::IsMember({"off", "low", "high", "max"}))
      ->capture_default_str();
  command->footer("Example: hadal chat -m MODEL --think high");
  command->callback([arguments, &outcome] {
    if (const Status done = chat(*arguments); !done) outcome.exit_code = report(done.error());
  });
}

}  // namespace hadal::cli
