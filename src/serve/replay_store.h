// What the model really wrote. A client sends a conversation back as JSON, without the reasoning perhaps, its
// arguments spelt anew; this store knows the very tokens of each turn, so that the prompt that is made of the
// history is the sequence that was read, token for token, and the prefix cache finds it.
//
// A turn is found by an id that the client got with it (of the turn, of its calls, of its reasoning) or,
// where the API has none, by the visible transcript up to it. It stands in for the message only if that still
// says the same; what a client edited is read as it is. Turns belong to a namespace: an id of somebody else
// is unknown. When they take more than their bytes the oldest are forgotten: their prompts are read as text,
// and what the tokenizer makes of it may part from what was sampled.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"
#include "engine/disk_cache.h"
#include "text/chat_message.h"

namespace hadal::serve {

struct SampledTurn {
  std::string id;
  bool thinking = false;             // begins after <think>
  std::vector<std::int32_t> tokens;  // all of the turn, EOS included
  std::string content, reasoning;
  std::vector<ToolCall> calls;
};

// Whether a message that a client sent is still this turn.
bool agrees(const SampledTurn& turn, const ChatMessage& message);

// The visible transcript as a chain of digests: of what came before and of one more message.
Sha256 extend_transcript(const Sha256& before, const ChatMessage& message);

class ReplayStore {
 public:
  // Turns are also kept on `disk`, if there is one, and those of earlier processes are taken from there.
  ReplayStore(std::int64_t max_bytes, DiskCache* disk);

  void put(const std::string& name_space, SampledTurn turn, const Sha256& transcript);
  std::shared_ptr<const SampledTurn> by_id(std::string_view name_space, std::string_view wire_id) const;
  std::shared_ptr<const SampledTurn> by_transcript(std::string_view name_space,
                                                   const Sha256& transcript) const;
  struct Stats {
    std::int64_t count = 0, bytes = 0, budget = 0;  // turns, and what they take of memory
  };
  Stats stats() const;

 private:
  using Key = std::pair<std::string, std::string>;  // namespace; id, or the digest of the transcript
  void remember(const std::string& name_space, const std::string& transcript,
                std::shared_ptr<const SampledTurn> turn);

  std::int64_t max_bytes_;
  DiskCache* disk_;
  mutable std::mutex mutex_;
  std::map<Key, std::shared_ptr<const SampledTurn>, std::less<>> turns_;
  std::deque<std::pair<Key, Key>> oldest_;
  std::int64_t bytes_ = 0;
};

// Ids that nobody can guess: 24 characters, of which every wire id of a turn has one: "call_<turn>00".
class IdSource {
 public:
  IdSource();
  std::string next();

 private:
  std::mutex mutex_;
  std::string secret_;
  std::uint64_t count_ = 0;
};
constexpr std::size_t kTurnIdSize = 24;
// The turn's id in a wire id, or "".
std::string_view turn_of_wire_id(std::string_view wire_id);

}  // namespace hadal::serve
