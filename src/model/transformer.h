// The forward of the whole model over a ragged batch: prefill chunks and decode steps of any number of
// sequences in one call. The result of a token depends on nothing but the tokens before it in its own
// sequence, bit for bit: not on the chunking, the company or the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "base/arena.h"
#include "model/forward.h"
#include "model/model.h"
#include "model/placed_weights.h"

namespace hadal {

struct BatchItem {
  enum class Logits : std::uint8_t { none, last, all };

  SequenceState* state = nullptr;        // appended to; each state at most once in a batch
  std::span<const std::int32_t> tokens;  // at least one
  Logits logits = Logits::last;          // of which of them
};

// Whether a backend can run a model in these numerics. Errors: unsupported, for `int8` with FP8 experts on
// disk or on a backend without it, and for experts on disk where the backend cannot read this process's
// memory; resource_exhausted where its memory is too small for the weights.
Status check_numerics(const Model& model, Numerics numerics, Backend& backend);
// MemoryBudget::beside_weight for these numerics, as an option names them: what a Transformer will have the
// backend prepare.
std::function<std::int64_t(const Linear&)> beside_weights(std::string_view numerics, const Backend& backend);

class Transformer {
 public:
  // All must outlive the transformer. Not thread-safe: one forward at a time.
  Transformer(const Model& model, Backend& backend, Numerics numerics);

  // The logits asked for, [rows, vocab], in the order of the batch; valid until the next call. Errors,
  // after which all states are as they were: invalid_argument for a token id out of range, resource_exhausted
  // for a sequence longer than max_position_embeddings; with a memory budget also io and cancelled.
  Result<std::span<const float>> forward(std::span<const BatchItem> batch);

  // The residual streams behind the last block of the latest forward, [T, n, d]; for forward_mtp.
  std::span<const float> streams() const { return on_host(streams_, streams_size_, host_streams_); }

  // Runs MTP block `index` over positions state.mtp_length() .. + T-1: `streams` are those positions' streams
  // [T, n, d], `next_tokens` the tokens that follow each of them. Returns logits of the tokens after those,
  // [T, vocab]; valid until the next call.
  Result<std::span<const float>> forward_mtp(SequenceState& state, std::span<const float> streams,
                                             std::span<const std::int32_t> next_tokens,
                                             std::int64_t index = 0);

  // One block on given streams [T, n, d], in place, for tests that go layer by layer; does not advance the
  // state's length.
  Status forward_block(SequenceState& state, std::span<const std::int32_t> tokens, std::int64_t block,
                       std::span<float> streams);

  // Asked while a forward waits for experts from disk; true ends it with an error.
  void set_cancelled(std::function<bool()> cancelled) { cancelled_ = std::move(cancelled); }

  void set_tap(Tap* tap) { tap_ = tap; }
  const Model& model() const { return model_; }
  Backend& backend() { return backend_; }
  Numerics numerics() const { return numerics_; }
  // What the backend made beside the weights for these numerics.
  struct Prepared {
    std::int64_t weight_bytes = 0;  // read, as the file has them
    std::int64_t bytes = 0;         // made, in memory
    double seconds = 0;

    // "1.23 GB of FP8 weights made int8 beside the checkpoint in 0.4 s (2.9 GB/s)"
    std::string to_string() const;
  };
  const Prepared& prepared() const { return prepared_; }
  std::size_t scratch_bytes() const {
    return arena_.reserved_bytes() + host_arena_.reserved_bytes() + streams_.size() + logits_.size();
  }

 private:
  // Calls body(Forward&) with the angles of the segments' positions.
  template <class Body>
  Status with_forward(std::span<const Segment> segments, std::span<const std::int32_t> tokens, Body&& body);
  Status check_tokens(std::span<const std::int32_t> tokens) const;
  // `count` floats of the backend's memory, where the process can read them.
  std::span<const float> on_host(const MemoryBlock& from, std::int64_t count, Buffer<float>& copy) const;

  const Model& model_;
  Backend& backend_;
  Numerics numerics_;
  Prepared prepared_;
  PlacedWeights weights_;
  Arena arena_, host_arena_;
  MemoryBlock streams_, logits_;                      // floats
  mutable Buffer<float> host_streams_, host_logits_;  // copies, of a device
  std::int64_t streams_size_ = 0;
  std::vector<std::int32_t> tokens_;
  std::vector<Segment> segments_;
  std::vector<Buffer<std::byte>> fixed_before_;  // of the states of the batch, with experts on disk
  std::function<bool()> cancelled_;
  Tap* tap_ = nullptr;
};

}  // namespace hadal
