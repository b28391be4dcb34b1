#include "serve/replay_store.h"

#include <cstring>
#include <random>

#include <nlohmann/json.hpp>

#include "text/json_value.h"

namespace hadal::serve {
namespace {

// A turn as a record on disk: the transcript's digest, then JSON.
std::string to_record(const SampledTurn& turn, const std::string& transcript) {
  nlohmann::ordered_json calls = nlohmann::ordered_json::array();
  for (const ToolCall& call : turn.calls) calls.push_back({call.id, call.name, call.arguments});
  const nlohmann::ordered_json json = {{"thinking", turn.thinking},
                                       {"tokens", turn.tokens},
                                       {"content", turn.content},
                                       {"reasoning", turn.reasoning},
                                       {"calls", calls}};
  return transcript + json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

bool from_record(std::string_view record, std::string& transcript, SampledTurn& turn) {
  constexpr std::size_t kDigest = sizeof(Sha256);
  if (record.size() < kDigest) return false;
  transcript = record.substr(0, kDigest);
  const auto json = nlohmann::json::parse(record.substr(kDigest), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return false;
  const auto text = [&](const nlohmann::json& from) {
    return from.is_string() ? from.get<std::string>() : "";
  };
  turn.thinking = json.value("thinking", false);
  turn.content = text(json.value("content", nlohmann::json()));
  turn.reasoning = text(json.value("reasoning", nlohmann::json()));
  for (const auto& token : json.value("tokens", nlohmann::json::array())) {
    if (!token.is_number_integer()) return false;
    turn.tokens.push_back(token.get<std::int32_t>());
  }
  for (const auto& call : json.value("calls", nlohmann::json::array())) {
    if (!call.is_array() || call.size() != 3) return false;
    turn.calls.push_back({text(call[0]), text(call[1]), text(call[2])});
  }
  return !turn.tokens.empty();
}

// The same arguments however they are spelt.
std::string canonical(const std::string& arguments) {
  const auto parsed = parse_json(arguments);
  return parsed ? to_python_json(*parsed) : arguments;
}

// Of memory, with the two entries that lead to it and their places in the queue: four keys of two strings.
std::int64_t size_of(const SampledTurn& turn) {
  std::size_t bytes = sizeof(SampledTurn) + 4 * (2 * sizeof(std::string) + 96) + 2 * 64;
  bytes += 4 * turn.tokens.size() + turn.content.size() + turn.reasoning.size();
  for (const ToolCall& call : turn.calls)
    bytes += sizeof(ToolCall) + call.id.size() + call.name.size() + call.arguments.size();
  return static_cast<std::int64_t>(bytes);
}

}  // namespace

bool agrees(const SampledTurn& turn, const ChatMessage& message) {
  if (message.content != turn.content || message.tool_calls.size() != turn.calls.size()) return false;
  if (!message.reasoning_content.empty() && message.reasoning_content != turn.reasoning) return false;
  for (std::size_t i = 0; i < turn.calls.size(); ++i) {
    const ToolCall& theirs = message.tool_calls[i];
    const ToolCall& ours = turn.calls[i];
    if (theirs.name != ours.name || canonical(theirs.arguments) != canonical(ours.arguments)) return false;
  }
  return true;
}

Sha256 extend_transcript(const Sha256& before, const ChatMessage& message) {
  std::string text(before.begin(), before.end());
  const auto add = [&text](std::string_view part) {
    text += std::to_string(part.size());
    text += ':';
    text += part;
  };
  add(message.role);
  add(message.content);
  for (const ToolCall& call : message.tool_calls) {
    add(call.name);
    add(canonical(call.arguments));
  }
  return sha256(text);
}

ReplayStore::ReplayStore(std::int64_t max_bytes, DiskCache* disk) : max_bytes_(max_bytes), disk_(disk) {
  if (disk_ == nullptr) return;
  for (const DiskCache::Record& record : disk_->records()) {
    auto turn = std::make_shared<SampledTurn>();
    turn->id = record.key;
    std::string transcript;
    if (from_record(record.value, transcript, *turn))
      remember(record.name_space, transcript, std::move(turn));
  }
  disk_->forget_records();
}

void ReplayStore::remember(const std::string& name_space, const std::string& transcript,
                           std::shared_ptr<const SampledTurn> turn) {
  const Key by_id(name_space, turn->id), by_text(name_space, transcript);
  if (!turns_.emplace(by_id, turn).second) return;  // ids are drawn once
  bytes_ += size_of(*turn);
  turns_[by_text] = std::move(turn);
  oldest_.emplace_back(by_id, by_text);
  while (bytes_ > max_bytes_) {
    const auto [id, text] = std::move(oldest_.front());
    oldest_.pop_front();
    const auto old = turns_.find(id);
    bytes_ -= size_of(*old->second);
    // A later turn may have the same transcript.
    if (const auto same = turns_.find(text); same != turns_.end() && same->second == old->second)
      turns_.erase(same);
    turns_.erase(old);
  }
}

void ReplayStore::put(const std::string& name_space, SampledTurn turn, const Sha256& transcript) {
  const std::string digest(transcript.begin(), transcript.end());
  if (disk_ != nullptr) disk_->put_record({name_space, turn.id, to_record(turn, digest)});
  const std::lock_guard lock(mutex_);
  remember(name_space, digest, std::make_shared<const SampledTurn>(std::move(turn)));
}

std::shared_ptr<const SampledTurn> ReplayStore::by_id(std::string_view name_space,
                                                      std::string_view wire_id) const {
  const std::string_view id = turn_of_wire_id(wire_id);
  if (id.empty()) return nullptr;
  const std::lock_guard lock(mutex_);
  const auto found = turns_.find(Key(name_space, id));
  return found == turns_.end() ? nullptr : found->second;
}

std::shared_ptr<const SampledTurn> ReplayStore::by_transcript(std::string_view name_space,
                                                              const Sha256& transcript) const {
  const std::lock_guard lock(mutex_);
  const auto found = turns_.find(Key(name_space, std::string(transcript.begin(), transcript.end())));
  return found == turns_.end() ? nullptr : found->second;
}

ReplayStore::Stats ReplayStore::stats() const {
  const std::lock_guard lock(mutex_);
  return {static_cast<std::int64_t>(oldest_.size()), bytes_, max_bytes_};
}

IdSource::IdSource() {
  std::random_device device;
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t word = device();
    secret_.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
}

std::string IdSource::next() {
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = ++count_;
  }
  const Sha256 digest = hmac_sha256(secret_, std::to_string(number));
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz234567";
  std::string id;
  for (std::size_t i = 0; i < kTurnIdSize; ++i) id += kLetters[digest[i] % kLetters.size()];
  return id;
}

std::string_view turn_of_wire_id(std::string_view wire_id) {
  const std::size_t prefix = wire_id.find_last_of("_-");
  if (prefix != std::string_view::npos) wire_id.remove_prefix(prefix + 1);
  return wire_id.size() < kTurnIdSize ? std::string_view() : wire_id.substr(0, kTurnIdSize);
}

}  // namespace hadal::serve
