#include "serve/scripted_runner.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "text/json_value.h"

namespace hadal::test {

ScriptedRunner::ScriptedRunner(Runner& model, Tokenizer tokenizer, std::vector<ScriptRule> rules, int step_ms)
    : model_(model),
      tokenizer_(std::move(tokenizer)),
      rules_(std::move(rules)),
      step_ms_(step_ms),
      user_(tokenizer_.id_of("<｜User｜>").value()),
      assistant_(tokenizer_.id_of("<｜Assistant｜>").value()),
      think_(tokenizer_.id_of("<think>").value()),
      eos_(tokenizer_.id_of("<｜end▁of▁sentence｜>").value()) {}

const std::vector<std::int32_t>& ScriptedRunner::reply_tokens(const std::string& reply) {
  auto& tokens = replies_[reply];
  if (tokens.empty()) {
    tokens = tokenizer_.encode_with_specials(reply).value();
    tokens.push_back(eos_);
  }
  return tokens;
}

std::int32_t ScriptedRunner::next_token(std::span<const std::int32_t> history) {
  const auto last_of = [&](std::int32_t token, std::size_t before) {
    for (std::size_t i = before; i-- > 0;)
      if (history[i] == token) return i;
    return before;
  };
  const std::size_t assistant = last_of(assistant_, history.size());
  if (assistant == history.size()) return reply_tokens("ok")[0];  // a raw completion
  const std::size_t user = last_of(user_, assistant);
  const std::string turn = tokenizer_.decode(history.subspan(user, assistant - user)).value();
  const bool thinking = assistant + 1 < history.size() && history[assistant + 1] == think_;
  std::string reply = thinking ? "</think>ok" : "ok";
  const std::size_t begin = turn.find("REPLY("), end = turn.rfind(")REPLY");
  if (begin != std::string::npos && end != std::string::npos) {
    if (const auto given = parse_json(turn.substr(begin + 6, end - begin - 6))) reply = given->text;
  } else {
    const auto turns =
        std::count(history.begin(), history.begin() + static_cast<std::ptrdiff_t>(assistant), assistant_);
    for (const ScriptRule& rule : rules_) {
      if (turn.find(rule.match) == std::string::npos || (rule.turn >= 0 && rule.turn != turns)) continue;
      reply = rule.reply;
      break;
    }
  }
  const std::size_t written = history.size() - assistant - 2;
  const auto& tokens = reply_tokens(reply);
  return written < tokens.size() ? tokens[written] : eos_;
}

Result<std::span<const float>> ScriptedRunner::forward(std::span<const RunItem> items) {
  const auto vocab = static_cast<std::size_t>(vocab_size());
  logits_.assign(items.size() * vocab, -1e4F);
  std::size_t row = 0;
  for (const RunItem& item : items) {
    item.state->prepare_append(item.count);
    item.state->advance(item.count);
    if (item.wants_logits) logits_[row++ * vocab + static_cast<std::size_t>(next_token(item.history))] = 0;
  }
  if (step_ms_ > 0) std::this_thread::sleep_for(std::chrono::milliseconds(step_ms_));
  return std::span<const float>(logits_);
}

}  // namespace hadal::test
