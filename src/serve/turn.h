// One request while the model answers it: tokens come in from the scheduler, are taken apart, and go out in
// the words of the API.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <hadal/tokenizer.h>

#include "engine/scheduler.h"
#include "engine/stop_strings.h"
#include "serve/answer.h"
#include "serve/prompt.h"
#include "serve/replay_store.h"
#include "text/chat_dialect.h"
#include "text/output_parser.h"

namespace hadal::serve {

// How a request went, for the log and the metrics.
struct TurnReport {
  GenerationEnd end;
  TurnResult result;
  int status = 200;
};

class Turn final : public GenerationListener {
 public:
  struct Setup {
    std::shared_ptr<const Request> request;
    Prompt prompt;  // its tokens may be gone: they are the scheduler's
    std::int64_t prompt_tokens =
        0;  // that are put down to this turn: 0 where another choice has them already
    std::string id;
    std::string name_space;
    Tokenizer tokenizer;
    const ChatDialect* dialect = nullptr;
    ReplayStore* replay = nullptr;  // null: nothing is remembered
    std::unique_ptr<Answer> answer;
    std::function<void(const TurnReport&)> done;
  };
  explicit Turn(Setup setup);

  void started(std::int64_t cached_tokens) override;
  bool token(const Sample& sample) override;
  void ended(GenerationEnd end) override;

  const Prompt& prompt() const { return setup_.prompt; }
  // Something for a client that has heard nothing for so long.
  void keep_alive_after(std::chrono::seconds silence);

 private:
  void take(std::string_view bytes);
  void hear(OutputEvent& event);
  void tell(OutputEvent& event);
  void say(const OutputEvent& event);
  void remember(const GenerationEnd& end);
  TurnFinish finish_of(const GenerationEnd& end) const;

  Setup setup_;
  OutputParser parser_;
  StopStrings stops_;
  std::optional<std::int32_t> think_end_, dsml_;
  std::vector<OutputEvent> events_;

  std::mutex mutex_;  // of the answer, which the one that keeps it alive uses too
  SchedulerClock::time_point last_word_;
  bool over_ = false;

  TurnResult result_;
  std::vector<TokenReport> reports_;  // since the last event
  ToolCall call_;
  std::optional<OutputEvent::Kind> part_;  // whose text came last: reasoning or answer
  std::string line_breaks_;                // at its end, so far
  bool at_start_ = true;                   // of it
  bool reasoning_ = false, truncated_ = false, enough_ = false;
};

}  // namespace hadal::serve
