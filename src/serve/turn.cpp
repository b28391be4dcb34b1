#include "serve/turn.h"

#include <algorithm>
#include <utility>

namespace hadal::serve {

Turn::Turn(Setup setup)
    : setup_(std::move(setup)),
      parser_(setup_.prompt.parser),
      stops_(setup_.request->stop),
      think_end_(setup_.tokenizer.id_of(setup_.dialect->think_end)),
      dsml_(setup_.tokenizer.id_of(setup_.dialect->dsml)),
      last_word_(SchedulerClock::now()),
      reasoning_(setup_.prompt.parser.thinking) {
  result_.usage.prompt_tokens = setup_.prompt_tokens;
}

void Turn::started(std::int64_t cached_tokens) {
  const std::lock_guard lock(mutex_);
  result_.usage.cached_tokens = std::min(cached_tokens, setup_.prompt_tokens);
  setup_.answer->start(result_.usage);
  last_word_ = SchedulerClock::now();
}

bool Turn::token(const Sample& sample) {
  const std::lock_guard lock(mutex_);
  ++result_.usage.completion_tokens;
  if (reasoning_ && sample.token == think_end_) reasoning_ = false;
  if (reasoning_) ++result_.usage.reasoning_tokens;
  // Of the tokens that no text makes, the model may write those of its answers' form; any other is noise.
  const bool is_noise =
      setup_.tokenizer.is_added(sample.token) && sample.token != think_end_ && sample.token != dsml_;
  if (setup_.request->logprobs && !reasoning_ && sample.token != think_end_) {
    TokenReport report{std::string(setup_.tokenizer.token_bytes(sample.token)), sample.logprob, {}};
    for (const TokenLogprob& top : sample.top)
      report.top.emplace_back(std::string(setup_.tokenizer.token_bytes(top.token)), top.logprob);
    reports_.push_back(std::move(report));
  }
  if (!is_noise) take(setup_.tokenizer.token_bytes(sample.token));
  return !enough_ && !parser_.done() && !setup_.answer->over();
}

void Turn::take(std::string_view bytes) {
  events_.clear();
  parser_.feed(bytes, events_);
  for (OutputEvent& event : events_) hear(event);
}

// Line breaks before and after reasoning and before the answer belong to neither, nor do those between an
// answer and calls; DeepSeek's API leaves them out too. The end of what the client began is left as it is.
void Turn::hear(OutputEvent& event) {
  using Kind = OutputEvent::Kind;
  if (setup_.request->api == Api::completions) return tell(event);
  if (event.kind == Kind::reasoning || event.kind == Kind::content) {
    if (part_ != event.kind) {
      line_breaks_.clear();
      at_start_ = !setup_.request->continues_last;
      part_ = event.kind;
    }
    event.text.insert(0, std::exchange(line_breaks_, {}));
    if (at_start_) event.text.erase(0, event.text.find_first_not_of('\n'));
    const std::size_t end = event.text.find_last_not_of('\n') + 1;
    line_breaks_ = event.text.substr(end);
    event.text.resize(end);
    if (event.text.empty()) return;
    at_start_ = false;
  } else if (event.kind == Kind::finish && part_ && !line_breaks_.empty()) {
    OutputEvent rest{.kind = *part_};
    rest.text = line_breaks_;
    tell(rest);
  } else {
    line_breaks_.clear();
  }
  tell(event);
}

// Stop strings are looked for in the answer alone: not in reasoning, not in calls.
void Turn::tell(OutputEvent& event) {
  using Kind = OutputEvent::Kind;
  if (enough_) return;
  if (event.kind == Kind::content) {
    event.text = stops_.push(event.text);
    if (stops_.stopped()) enough_ = true;
    if (event.text.empty()) return;
  } else if (event.kind != Kind::reasoning) {
    // A call begins, or the end has come: no stop string is completed any more.
    if (std::string held = stops_.flush(); !held.empty()) {
      OutputEvent rest{.kind = Kind::content};
      rest.text = std::move(held);
      say(rest);
    }
  }
  say(event);
}

void Turn::say(const OutputEvent& event) {
  using Kind = OutputEvent::Kind;
  switch (event.kind) {
    case Kind::reasoning:
      result_.reasoning += event.text;
      break;
    case Kind::content:
      result_.content += event.text;
      reasoning_ = false;
      break;
    case Kind::tool_call_start:
      call_ = {setup_.answer->call_id(event.index), event.text, ""};
      reasoning_ = false;
      break;
    case Kind::tool_call_arguments:
      call_.arguments += event.text;
      break;
    case Kind::tool_call_end:
      result_.calls.push_back(std::exchange(call_, {}));
      if (!setup_.request->parallel_tools) enough_ = true;
      break;
    case Kind::finish:
      truncated_ = event.end == OutputEnd::truncated_call;
      return;
  }
  if (event.kind == Kind::content) {
    setup_.answer->event(event, reports_);
    result_.logprobs.insert(result_.logprobs.end(), reports_.begin(), reports_.end());
    reports_.clear();
  } else {
    setup_.answer->event(event, {});
  }
  last_word_ = SchedulerClock::now();
}

TurnFinish Turn::finish_of(const GenerationEnd& end) const {
  if (stops_.stopped()) return TurnFinish::stop_sequence;
  // A call that was begun and never ended is no call, and what a client has seen of it is not to be used.
  if (end.finish == FinishReason::length || (truncated_ && !call_.id.empty())) return TurnFinish::length;
  return result_.calls.empty() ? TurnFinish::stop : TurnFinish::tool_calls;
}

void Turn::ended(GenerationEnd end) {
  TurnReport report;
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
    if (end.error) {
      setup_.answer->fail(from_error(*end.error));
    } else if (end.finish == FinishReason::cancelled) {
      // The client has left, or the server is going down; who still listens should know.
      setup_.answer->fail({ApiError::Kind::unavailable, "the request was cancelled", "", 1});
    } else {
      events_.clear();
      parser_.finish(events_);
      for (OutputEvent& event : events_) hear(event);
      result_.finish = finish_of(end);
      if (stops_.stopped()) result_.stop_sequence = stops_.matched();
      remember(end);
      setup_.answer->finish(result_);
    }
    report.status = setup_.answer->status();
    report.result = result_;
    report.end = std::move(end);
  }
  if (setup_.done) setup_.done(report);
}

// A turn that the client sees in full. What a stop string cut off must not come back with the next request.
void Turn::remember(const GenerationEnd& end) {
  if (setup_.replay == nullptr || stops_.stopped() || truncated_ || setup_.request->continues_last) return;
  const auto eos = setup_.tokenizer.id_of(setup_.dialect->eos);
  if (!eos || setup_.request->api == Api::completions) return;
  SampledTurn turn;
  turn.id = setup_.id;
  turn.thinking = setup_.prompt.thinking;
  turn.tokens = setup_.prompt.opening;
  turn.tokens.insert(turn.tokens.end(), end.tokens.begin(), end.tokens.end());
  turn.tokens.push_back(*eos);
  turn.content = result_.content;
  turn.reasoning = result_.reasoning;
  turn.calls = result_.calls;
  ChatMessage message;
  message.role = "assistant";
  message.content = turn.content;
  message.tool_calls = turn.calls;
  const Sha256 transcript = extend_transcript(setup_.prompt.transcript, message);
  setup_.replay->put(setup_.name_space, std::move(turn), transcript);
}

void Turn::keep_alive_after(std::chrono::seconds silence) {
  const std::lock_guard lock(mutex_);
  if (over_ || SchedulerClock::now() - last_word_ < silence) return;
  last_word_ = SchedulerClock::now();
  setup_.answer->keep_alive();
}

}  // namespace hadal::serve
