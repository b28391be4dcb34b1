// The library in three nouns: an Engine holds a model and the machine it runs on, a Sequence is one line of
// tokens that the model has read, and generate() continues it. docs/library.md has a complete example.
//
// An Engine and its Sequences belong to one thread at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>
#include <hadal/tokenizer.h>

namespace hadal {

struct EngineOptions {
  std::filesystem::path model;  // directory in Hugging Face layout; empty: the embedded default model
  int threads = 0;              // 0: all that the machine has
  bool pin_threads = false;     // each to a core of its own, but for the caller's
  std::string numerics;  // exact, qsim, official, int8; empty: official if a weight is quantised, else exact
  // How sequences keep what they have read (docs/sequence_state.md): compact, the formats of the published
  // deployment, or f32. Empty: compact, but f32 with exact numerics, whose rows nothing quantises.
  std::string state;
  std::string backend = "cpu";  // cpu; cuda, in builds with HADAL_CUDA; ref: the plain reference
  std::string isa;              // avx512bf16, avx512vnni, avx512, avx2vnni, avx2 or scalar; empty: the best
  std::int64_t chunk_tokens = 512;     // prompt tokens per forward; bounds scratch memory, never the result
  std::int64_t checkpoint_tokens = 0;  // keep a point to truncate to every so many tokens; 0: none
  bool tokenizer = true;               // load tokenizer.json (false: token ids only)
  // Of the whole process, in bytes: routed experts are read from disk as they are wanted (docs/memory.md). 0:
  // no budget, all weights mapped.
  std::int64_t memory_bytes = 0;
  std::int64_t memory_tokens = 0;  // that sequences may hold together under a budget; 0: 16384
  // At a time under a budget, forks among them: each takes its windows and a page of its own. More than were
  // planned for are not refused, they go beyond the budget.
  std::int64_t memory_sequences = 1;
  bool huge_pages = true;  // for this process (prctl); false also where they would be asked for
  std::string numa;  // interleave: memory over all nodes; off: none; empty: interleave if there are several
  std::function<void(std::string_view)> notice;  // hears what was left out and why, a line at a time
};

// Applied in this order: temperature, min-p, top-k, top-p.
struct SamplingOptions {
  double temperature = 1;  // 0: greedy
  double top_p = 1;        // the smallest set of most likely tokens whose probabilities reach this; 1: all
  std::int64_t top_k = 0;  // the k most likely; 0: all
  double min_p = 0;        // at least this share of the most likely token's probability
  std::uint64_t seed = 0;  // the draw at a position depends on seed and position alone

  // invalid_argument, naming the option and its range.
  Status validate() const;
};

struct TokenLogprob {
  std::int32_t token = 0;
  double logprob = 0;  // of the model's own distribution: temperature 1, nothing cut off
};

struct GenerationOptions {
  std::int64_t max_tokens = 256;
  SamplingOptions sampling;
  std::vector<std::string> stop;          // ends before the first of these appears in the text
  std::vector<std::int32_t> stop_tokens;  // ends when one of these is sampled; it is not part of the text
  std::int64_t top_logprobs = 0;          // alternatives to report per token
  std::function<bool()> cancelled;        // asked before every forward
};

enum class FinishReason : std::uint8_t { stop, length, cancelled };
std::string_view to_string(FinishReason reason);

struct GeneratedToken {
  std::int32_t id = 0;
  double logprob = 0;
  std::vector<TokenLogprob> top;  // best first
  std::string text;               // what became showable with this token; complete characters
};

struct Generation {
  std::vector<std::int32_t> tokens;  // without the stop token
  std::string text;
  FinishReason finish = FinishReason::length;
  std::int64_t prompt_tokens = 0;  // read in this call
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

struct EngineInfo {
  std::string model;     // path, or "embedded"
  std::string backend;   // "cpu-avx512"
  std::string numerics;  // "official"
  std::string state;     // "compact"
  int threads = 0;
  std::int64_t vocab_size = 0;
  std::int64_t context = 0;     // tokens
  std::int64_t parameters = 0;  // without the MTP blocks
  std::int64_t mtp_blocks = 0;
  std::int32_t bos_token = 0;
  std::int32_t eos_token = 0;
  std::string config_json;  // the model's config.json as it was read
};

class Engine;

class Sequence {
 public:
  Sequence(Sequence&&) noexcept;
  Sequence& operator=(Sequence&&) noexcept;
  ~Sequence();

  // Reads tokens. Errors: invalid_argument (an id out of range), resource_exhausted (longer than the
  // context); the sequence is then as it was.
  Status append(std::span<const std::int32_t> tokens);
  // Of the token after the last one read, [vocab]; empty before the first append.
  std::span<const float> logits() const;

  const std::vector<std::int32_t>& tokens() const;
  std::int64_t length() const;
  std::int64_t state_bytes() const;

  // A second sequence that continues from here on its own; what both have read is shared.
  Sequence fork() const;
  // Back to a kept checkpoint (EngineOptions::checkpoint_tokens), 0 or the present length. logits() is empty
  // until the next append.
  Status truncate(std::int64_t length);
  // The state and the tokens, as `path` and `path`.tokens; see Engine::load_sequence.
  Status save(const std::filesystem::path& path) const;

 private:
  friend class Engine;
  struct Impl;
  explicit Sequence(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Engine {
 public:
  // Errors: not_found, corrupt, unsupported, each naming file and tensor or field.
  static Result<Engine> open(const EngineOptions& options);

  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  const EngineInfo& info() const;
  const Tokenizer& tokenizer() const;  // only with EngineOptions::tokenizer

  Sequence start() const;
  Result<Sequence> load_sequence(const std::filesystem::path& path) const;

  // Reads `prompt` into the sequence (it may be empty if logits() is not), then samples until a stop or
  // max_tokens; each token is shown as it comes. Every token of the result but the last has been read too;
  // the last is left to the next append, so that a chat costs no forward too many.
  Result<Generation> generate(Sequence& sequence, std::span<const std::int32_t> prompt,
                              const GenerationOptions& options,
                              const std::function<void(const GeneratedToken&)>& show = {}) const;

 private:
  friend class Sequence;
  friend class ModelRunner;  // the scheduler of a server runs the model by itself (src/engine/runner.h)
  struct Impl;
  explicit Engine(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace hadal
