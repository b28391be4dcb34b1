#include "model/transformer.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "base/check.h"
#include "model/block.h"
#include "model/moe.h"
#include "model/mtp.h"

namespace hadal {
namespace {

// At least `size` floats, whose contents nobody needs any more.
float* grow(MemoryBlock& block, std::int64_t size, Memory& memory) {
  const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
  if (block.size() < bytes) block = MemoryBlock::uninitialised(bytes, memory);
  return reinterpret_cast<float*>(block.data());
}

}  // namespace

Status check_numerics(const Model& model, Numerics numerics, Backend& backend) {
  if (numerics == Numerics::int8 && !backend.supports(InputRounding::int8)) {
    return fail(
        ErrorCode::unsupported,
        fmt::format("int8 numerics are for CPUs, not for the backend {}; use official", backend.name()));
  }
  if (model.expert_cache() != nullptr && !backend.memory().on_host()) {
    return fail(
        ErrorCode::unsupported,
        fmt::format("a memory budget, with experts on disk, is for CPUs, not for the backend {}; leave it "
                    "out, or use fewer layers",
                    backend.name()));
  }
  if (model.config().v32 && !backend.memory().on_host()) {
    return fail(
        ErrorCode::unsupported,
        fmt::format("DeepSeek-V3.2, the baseline, runs on CPUs, not on the backend {}", backend.name()));
  }
  if (Memory& memory = backend.memory(); !memory.on_host()) {
    const std::size_t needed = PlacedWeights::bytes(model), free = memory.available();
    if (needed > free) {
      return fail(
          ErrorCode::resource_exhausted,
          fmt::format("the weights take {:.1f} GB, and {} has {:.1f} GB free; use the backend cpu",
                      static_cast<double>(needed) / 1e9, backend.name(), static_cast<double>(free) / 1e9));
    }
  }
  bool packs_experts = false;
  if (numerics == Numerics::int8 && model.memory_plan() != nullptr) {
    model.for_each_linear([&](const Linear& w) {
      packs_experts = packs_experts || (w.weight == nullptr && w.format == Linear::Format::fp8);
    });
  }
  if (packs_experts) {
    return fail(
        ErrorCode::unsupported,
        "int8 numerics pack FP8 weights once, and under a memory budget this model's FP8 experts come "
        "from disk again and again; use official numerics, or no budget");
  }
  return {};
}

std::function<std::int64_t(const Linear&)> beside_weights(std::string_view numerics, const Backend& backend) {
  if (numerics != to_string(Numerics::int8)) return {};
  return [&backend](const Linear& w) { return backend.prepared_bytes(w, InputRounding::int8); };
}

std::string Transformer::Prepared::to_string() const {
  return fmt::format("{:.2f} GB of FP8 weights made int8 beside the checkpoint in {:.2f} s ({:.1f} GB/s)",
                     static_cast<double>(weight_bytes) / 1e9, seconds,
                     static_cast<double>(weight_bytes) / 1e9 / seconds);
}

Transformer::Transformer(const Model& model, Backend& backend, Numerics numerics)
    : model_(model),
      backend_(backend),
      numerics_(numerics),
      weights_(model, backend.memory()),
      arena_(backend.memory()) {
  if (numerics != Numerics::int8) return;
  const auto start = std::chrono::steady_clock::now();
  model.for_each_linear([&](const Linear& w) {
    if (w.weight == nullptr) return;  // an expert on disk
    const std::int64_t bytes = backend.prepare(w, InputRounding::int8);
    if (bytes > 0) prepared_.weight_bytes += w.out * w.row_bytes();
    prepared_.bytes += bytes;
  });
  prepared_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class Body>
Status Transformer::with_forward(std::span<const Segment> segments, std::span<const std::int32_t> tokens,
                                 Body&& body) {
  const Arena::Scope scope(arena_), host_scope(host_arena_);
  const auto n = static_cast<std::int64_t>(tokens.size());
  const std::int64_t half = model_.config().qk_rope_head_dim / 2;
  for (const Segment& s : segments) s.state->move_to(backend_.memory());
  auto* positions = host_arena_.take<std::int64_t>(n);
  for (const Segment& s : segments) {
    for (std::int64_t i = 0; i < s.count; ++i) positions[s.begin + i] = s.start + i;
  }
  float* angles = arena_.take<float>(4 * n * half);
  const std::span<const std::int64_t> all(positions, static_cast<std::size_t>(n));
  backend_.run(AnglesParams{all, model_.sliding_frequencies().values(), angles, angles + n * half});
  backend_.run(AnglesParams{all, model_.compress_frequencies().values(), angles + 2 * n * half,
                            angles + 3 * n * half});
  Forward f{model_.config(),
            backend_,
            numerics_,
            arena_,
            host_arena_,
            segments,
            tokens,
            model_.sliding_frequencies(),
            model_.compress_frequencies(),
            angles,
            angles + n * half,
            angles + 2 * n * half,
            angles + 3 * n * half,
            weights_.get(),
            model_.expert_cache(),
            tap_,
            ""};
  if (f.experts == nullptr) return body(f);

  // A read may fail when some layers have already written their rows.
  f.experts->begin_forward(n, cancelled_);
  fixed_before_.resize(std::max(fixed_before_.size(), segments.size()));
  for (std::size_t i = 0; i < segments.size(); ++i) segments[i].state->copy_fixed(fixed_before_[i]);
  Status done = body(f);
  for (std::size_t i = 0; !done && i < segments.size(); ++i)
    segments[i].state->restore_fixed(fixed_before_[i]);
  return done;
}

std::span<const float> Transformer::on_host(const MemoryBlock& from, std::int64_t count,
                                            Buffer<float>& copy) const {
  const auto n = static_cast<std::size_t>(count);
  Memory& memory = backend_.memory();
  if (memory.on_host()) return {reinterpret_cast<const float*>(from.data()), n};
  if (copy.size() < n) copy = Buffer<float>::uninitialised(n);
  if (n > 0) memory.read(copy.data(), from.data(), n * sizeof(float));
  return {copy.data(), n};
}

Status Transformer::check_tokens(std::span<const std::int32_t> tokens) const {
  const std::int64_t vocab = model_.config().vocab_size;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab) {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("token {} has id {}, but the model's vocabulary has ids 0 to {}", i, tokens[i],
                              vocab - 1));
    }
  }
  return {};
}

Result<std::span<const float>> Transformer::forward(std::span<const BatchItem> batch) {
  const Config& config = model_.config();
  tokens_.clear();
  segments_.clear();
  std::int64_t rows = 0;
  for (const BatchItem& item : batch) {
    const auto count = static_cast<std::int64_t>(item.tokens.size());
    HADAL_CHECK(item.state != nullptr && count > 0);
    HADAL_RETURN_IF_ERROR(check_tokens(item.tokens));
    if (item.state->length() + count > config.max_position_embeddings) {
      return fail(ErrorCode::resource_exhausted,
                  fmt::format("{} tokens do not fit in the model's context of {}; shorten the prompt",
                              item.state->length() + count, config.max_position_embeddings));
    }
    segments_.push_back({item.state, item.state->length(), static_cast<std::int64_t>(tokens_.size()), count});
    tokens_.insert(tokens_.end(), item.tokens.begin(), item.tokens.end());
    rows += item.logits == BatchItem::Logits::all ? count : item.logits == BatchItem::Logits::last ? 1 : 0;
  }
  const auto n = static_cast<std::int64_t>(tokens_.size());
  const std::int64_t width = config.hc_mult * config.hidden_size, d = config.hidden_size;
  streams_size_ = n * width;
  Memory& memory = backend_.memory();
  float* streams = grow(streams_, streams_size_, memory);
  float* logits = grow(logits_, rows * config.vocab_size, memory);
  for (const Segment& s : segments_) {
    s.state->move_to(memory);
    s.state->prepare_append(s.count);
  }

  Status ran = with_forward(segments_, tokens_, [&](Forward& f) -> Status {
    prefetch_hash_routed(f);
    const Weights& w = f.weights;
    backend_.run(EmbedParams{tokens_, &w.embed, config.hc_mult, streams});
    for (std::int64_t block = 0; block < config.num_hidden_layers; ++block) {
      if (tap_ != nullptr) f.tap_prefix = fmt::format("layers.{}.", block);
      HADAL_RETURN_IF_ERROR(run_block(f, block, w.layers[static_cast<std::size_t>(block)], streams));
    }
    if (rows == 0) return {};

    // The head reads only the rows that somebody asked for.
    float* wanted = arena_.take<float>(rows * width);
    auto* wanted_rows = host_arena_.take<std::int64_t>(rows);
    std::size_t n_wanted = 0;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const Segment& s = segments_[i];
      const std::int64_t skip = batch[i].logits == BatchItem::Logits::all    ? 0
                                : batch[i].logits == BatchItem::Logits::last ? s.count - 1
                                                                             : s.count;
      for (std::int64_t t = skip; t < s.count; ++t) wanted_rows[n_wanted++] = s.begin + t;
    }
    backend_.run(GatherRowsParams{{wanted_rows, n_wanted}, width, streams, wanted});
    float* h = arena_.take<float>(rows * d);
    f.tap_prefix = "final.";
    read_head(f, w.hc_head, wanted, rows, h);
    f.watch("hc_head", h, {rows, d});
    f.rms_norm(h, w.norm.data(), rows, d, h);
    f.watch("norm", h, {rows, d});
    f.linear(w.head, h, rows, logits);
    return {};
  });
  HADAL_RETURN_IF_ERROR(std::move(ran));
  for (const Segment& s : segments_) s.state->advance(s.count);
  return on_host(logits_, rows * config.vocab_size, host_logits_);
}

Result<std::span<const float>> Transformer::forward_mtp(SequenceState& state, std::span<const float> streams,
                                                        std::span<const std::int32_t> next_tokens,
                                                        std::int64_t index) {
  const Config& config = model_.config();
  if (index < 0 || index >= static_cast<std::int64_t>(model_.weights().mtp.size())) {
    return fail(ErrorCode::unsupported,
                fmt::format("MTP block {}: this model has {}", index, model_.weights().mtp.size()));
  }
  HADAL_RETURN_IF_ERROR(check_tokens(next_tokens));
  const auto n = static_cast<std::int64_t>(next_tokens.size());
  HADAL_CHECK(static_cast<std::int64_t>(streams.size()) == n * config.hc_mult * config.hidden_size);
  HADAL_CHECK(state.mtp_length() + n <= state.length());
  Memory& memory = backend_.memory();
  float* logits = grow(logits_, n * config.vocab_size, memory);
  const Segment segment{&state, state.mtp_length(), 0, n};
  HADAL_RETURN_IF_ERROR(with_forward({&segment, 1}, next_tokens, [&](Forward& f) {
    if (tap_ != nullptr) f.tap_prefix = fmt::format("mtp.{}.", index);
    const float* from = streams.data();
    if (!memory.on_host()) {
      float* copy = arena_.take<float>(static_cast<std::int64_t>(streams.size()));
      memory.write(reinterpret_cast<std::byte*>(copy), streams.data(), streams.size_bytes());
      from = copy;
    }
    return mtp(f, index, f.weights, from, logits);
  }));
  state.advance_mtp(n);
  return on_host(logits_, n * config.vocab_size, host_logits_);
}

Status Transformer::forward_block(SequenceState& state, std::span<const std::int32_t> tokens,
                                  std::int64_t block, std::span<float> streams) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  const Segment segment{&state, state.length(), 0, n};
  Memory& memory = backend_.memory();
  state.move_to(memory);
  state.prepare_append(n);
  return with_forward({&segment, 1}, tokens, [&](Forward& f) -> Status {
    f.tap_prefix = fmt::format("layers.{}.", block);
    const BlockWeights& w = f.weights.layers[static_cast<std::size_t>(block)];
    if (memory.on_host()) return run_block(f, block, w, streams.data());
    float* copy = arena_.take<float>(static_cast<std::int64_t>(streams.size()));
    memory.write(reinterpret_cast<std::byte*>(copy), streams.data(), streams.size_bytes());
    HADAL_RETURN_IF_ERROR(run_block(f, block, w, copy));
    memory.read(streams.data(), reinterpret_cast<const std::byte*>(copy), streams.size_bytes());
    return {};
  });
}

}  // namespace hadal
