#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>

#include <fmt/format.h>

#include <hadal/engine.h>

#include "base/check.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "base/memory_policy.h"
#include "embedded_model.h"
#include "engine/embedded.h"
#include "engine/engine_impl.h"
#include "engine/stop_strings.h"
#include "model/inventory.h"
#include "model/transformer.h"

namespace hadal {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Opened {
  std::string config_json;
  std::optional<Model> model;
  std::optional<Tokenizer> tokenizer;
};

Result<Opened> open_embedded(const EngineOptions& options) {
  const EmbeddedModel files = embedded_model();
  Opened opened;
  opened.config_json = files.config_json;
  HADAL_ASSIGN_OR_RETURN(opened.model, load_embedded_model(options.notice));
  if (options.tokenizer) {
    HADAL_ASSIGN_OR_RETURN(opened.tokenizer, Tokenizer::from_json(files.tokenizer_json));
  }
  return opened;
}

Result<Opened> open_directory(const EngineOptions& options, const Backend& backend, ThreadPool& pool) {
  Opened opened;
  // The tokenizer first: what it takes is then part of the memory plan.
  if (options.tokenizer) {
    HADAL_ASSIGN_OR_RETURN(opened.tokenizer, Tokenizer::load(options.model));
  }
  const MemoryBudget memory{.bytes = options.memory_bytes,
                            .chunk_tokens = options.chunk_tokens,
                            .sequences = options.memory_sequences,
                            .sequence_tokens = options.memory_tokens,
                            .beside_weight = beside_weights(options.numerics, backend)};
  HADAL_ASSIGN_OR_RETURN(opened.model, Model::load(options.model, options.notice, memory,
                                                   WeightCheck::before(options.numerics, pool)));
  HADAL_ASSIGN_OR_RETURN(opened.config_json, read_file(options.model / "config.json"));
  if (options.tokenizer) {
    // A tokenizer may know fewer ids than the embedding has rows, never more.
    if (opened.tokenizer->vocab_size() > opened.model->config().vocab_size) {
      return fail(
          ErrorCode::corrupt,
          fmt::format(
              "{}: tokenizer.json has {} ids, but the model's vocabulary is {}; it belongs to another model",
              options.model.string(), opened.tokenizer->vocab_size(), opened.model->config().vocab_size));
    }
  }
  return opened;
}

}  // namespace

std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
  }
  return "unknown";
}

Status Engine::Impl::check_tokens(std::int64_t length, std::span<const std::int32_t> tokens) const {
  const std::int64_t total = length + static_cast<std::int64_t>(tokens.size());
  if (total > info.context) {
    return fail(ErrorCode::resource_exhausted,
                fmt::format("{} tokens do not fit in the model's context of {}; shorten the prompt", total,
                            info.context));
  }
  if (const MemoryPlan* plan = model->memory_plan(); plan != nullptr && total > plan->sequence_tokens) {
    return fail(
        ErrorCode::resource_exhausted,
        fmt::format("{} tokens do not fit in the memory plan, which has room for {} in a sequence; ask for "
                    "more of them and, if need be, for more memory",
                    total, plan->sequence_tokens));
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= info.vocab_size) {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("token {} has id {}, but the model's vocabulary has ids 0 to {}", i, tokens[i],
                              info.vocab_size - 1));
    }
  }
  return {};
}

struct Sequence::Impl {
  Impl(std::shared_ptr<Engine::Impl> owner, SequenceState begun)
      : engine(std::move(owner)), state(std::move(begun)) {}

  std::shared_ptr<Engine::Impl> engine;
  SequenceState state;
  std::vector<std::int32_t> tokens;
  std::vector<float> logits;
};

Engine::Engine(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Result<Engine> Engine::open(const EngineOptions& options) {
  if (options.chunk_tokens < 1) return fail(ErrorCode::invalid_argument, "chunk_tokens must be at least 1");
  if (options.checkpoint_tokens < 0 || options.checkpoint_tokens % kPageTokens != 0) {
    return fail(ErrorCode::invalid_argument, fmt::format("checkpoint_tokens is {}, expected a multiple of {}",
                                                         options.checkpoint_tokens, kPageTokens));
  }
  if (options.memory_sequences < 1)
    return fail(ErrorCode::invalid_argument, "memory_sequences must be at least 1");
  HADAL_ASSIGN_OR_RETURN(const NumaPolicy numa, numa_policy_from_string(options.numa));
  const bool embedded = options.model.empty();
  if (embedded && options.memory_bytes > 0) {
    return fail(ErrorCode::invalid_argument,
                "a memory budget needs a model directory, to read experts from; the embedded model has none");
  }
  apply_memory_policy({options.huge_pages, numa}, options.notice);
  auto impl = std::make_shared<Impl>(options);
  HADAL_ASSIGN_OR_RETURN(impl->backend, make_backend(options.backend, options.isa, impl->pool));
  HADAL_ASSIGN_OR_RETURN(
      Opened opened, embedded ? open_embedded(options) : open_directory(options, *impl->backend, impl->pool));
  impl->model = std::move(opened.model);
  impl->tokenizer = std::move(opened.tokenizer);

  Numerics numerics = impl->model->quantised() ? Numerics::official : Numerics::exact;
  if (!options.numerics.empty()) {
    HADAL_ASSIGN_OR_RETURN(numerics, numerics_from_string(options.numerics));
  }
  HADAL_ASSIGN_OR_RETURN(impl->state, choose_state_format(options.state, quantises_rows(numerics)));
  HADAL_RETURN_IF_ERROR(check_numerics(*impl->model, numerics, *impl->backend));
  impl->transformer.emplace(*impl->model, *impl->backend, numerics);
  if (options.notice && impl->transformer->prepared().bytes > 0)
    options.notice(impl->transformer->prepared().to_string());
  const Config& config = impl->model->config();
  EngineInfo& info = impl->info;
  info.model = embedded ? "embedded" : options.model.string();
  info.backend = impl->backend->name();
  info.numerics = to_string(numerics);
  info.state = to_string(impl->state);
  info.threads = impl->pool.size();
  info.vocab_size = config.vocab_size;
  info.context = config.max_position_embeddings;
  info.parameters = count_parameters(config).total;
  info.mtp_blocks = config.num_nextn_predict_layers;
  info.bos_token = static_cast<std::int32_t>(config.bos_token_id);
  info.eos_token = static_cast<std::int32_t>(config.eos_token_id);
  info.config_json = std::move(opened.config_json);
  return Engine(std::move(impl));
}

const EngineInfo& Engine::info() const {
  return impl_->info;
}

const Tokenizer& Engine::tokenizer() const {
  HADAL_CHECK(impl_->tokenizer.has_value());
  return *impl_->tokenizer;
}

Sequence Engine::start() const {
  return Sequence(std::make_unique<Sequence::Impl>(impl_, SequenceState(impl_->state_layout())));
}

Result<Sequence> Engine::load_sequence(const std::filesystem::path& path) const {
  const auto tag = static_cast<std::uint64_t>(impl_->transformer->numerics());
  HADAL_ASSIGN_OR_RETURN(SequenceState state, SequenceState::load(impl_->state_layout(), path, tag));
  std::filesystem::path ids_path = path;
  ids_path += ".tokens";
  HADAL_ASSIGN_OR_RETURN(const std::string bytes, read_file(ids_path));
  if (bytes.size() != 4 * static_cast<std::size_t>(state.length())) {
    return fail(ErrorCode::corrupt,
                fmt::format("{}: {} bytes for a sequence of {} tokens; it belongs to another save",
                            ids_path.string(), bytes.size(), state.length()));
  }
  auto sequence = std::make_unique<Sequence::Impl>(impl_, std::move(state));
  sequence->tokens.resize(bytes.size() / 4);
  if (!bytes.empty()) std::memcpy(sequence->tokens.data(), bytes.data(), bytes.size());
  return Sequence(std::move(sequence));
}

Result<Generation> Engine::generate(Sequence& sequence, std::span<const std::int32_t> prompt,
                                    const GenerationOptions& options,
                                    const std::function<void(const GeneratedToken&)>& show) const {
  HADAL_RETURN_IF_ERROR(options.sampling.validate());
  if (prompt.empty() && sequence.logits().empty()) {
    return fail(ErrorCode::invalid_argument,
                "an empty prompt on an empty sequence: there is nothing to continue");
  }
  // All or nothing: a prompt that will be refused is refused before its first chunk is read.
  HADAL_RETURN_IF_ERROR(impl_->check_tokens(sequence.length(), prompt));
  const auto cancelled = [&] { return options.cancelled && options.cancelled(); };
  Generation result;
  result.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  // A forward that reads from disk may take long, and asks meanwhile; cancelled, it leaves the sequence as it
  // was.
  impl_->transformer->set_cancelled(options.cancelled);
  const auto was_cancelled = [](const Status& status) {
    return !status && status.error().code() == ErrorCode::cancelled;
  };
  const auto prefill_start = Clock::now();
  for (std::size_t at = 0;
       at < prompt.size();) {  // a chunk at a time, so that a long prompt can be cancelled
    if (cancelled()) {
      result.finish = FinishReason::cancelled;
      return result;
    }
    const std::size_t count =
        std::min(prompt.size() - at, static_cast<std::size_t>(impl_->options.chunk_tokens));
    Status read = sequence.append(prompt.subspan(at, count));
    if (was_cancelled(read)) {
      result.finish = FinishReason::cancelled;
      return result;
    }
    HADAL_RETURN_IF_ERROR(std::move(read));
    at += count;
  }
  result.prefill_seconds = seconds_since(prefill_start);

  const auto decode_start = Clock::now();
  std::optional<StreamDecoder> decoder;
  if (impl_->tokenizer) decoder.emplace(*impl_->tokenizer);
  StopStrings stops(options.stop);
  for (std::int64_t i = 0; i < options.max_tokens; ++i) {
    if (i > 0) {
      if (cancelled()) {
        result.finish = FinishReason::cancelled;
        break;
      }
      if (sequence.length() == impl_->info.context) break;  // length
      Status read = sequence.append({&result.tokens.back(), 1});
      if (was_cancelled(read)) {
        result.finish = FinishReason::cancelled;
        break;
      }
      HADAL_RETURN_IF_ERROR(std::move(read));
    }
    Sample sample =
        impl_->sampler.sample(sequence.logits(), options.sampling,
                              static_cast<std::uint64_t>(sequence.length()), options.top_logprobs);
    if (std::find(options.stop_tokens.begin(), options.stop_tokens.end(), sample.token) !=
        options.stop_tokens.end()) {
      result.finish = FinishReason::stop;
      break;
    }
    result.tokens.push_back(sample.token);
    GeneratedToken token{sample.token, sample.logprob, std::move(sample.top), ""};
    if (decoder) token.text = stops.push(decoder->push(sample.token));
    result.text += token.text;
    if (show) show(token);
    if (stops.stopped()) {
      result.finish = FinishReason::stop;
      break;
    }
  }
  if (decoder && !stops.stopped()) {
    GeneratedToken rest{-1, 0, {}, stops.push(decoder->flush())};
    rest.text += stops.flush();
    result.text += rest.text;
    if (show && !rest.text.empty()) show(rest);
  }
  result.decode_seconds = seconds_since(decode_start);
  return result;
}

Sequence::Sequence(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Sequence::Sequence(Sequence&&) noexcept = default;
Sequence& Sequence::operator=(Sequence&&) noexcept = default;
Sequence::~Sequence() = default;

Status Sequence::append(std::span<const std::int32_t> tokens) {
  if (tokens.empty()) return {};
  Engine::Impl& engine = *impl_->engine;
  HADAL_RETURN_IF_ERROR(engine.check_tokens(impl_->state.length(), tokens));
  while (!tokens.empty()) {
    std::int64_t chunk =
        std::min<std::int64_t>(static_cast<std::int64_t>(tokens.size()), engine.options.chunk_tokens);
    const std::int64_t every = engine.options.checkpoint_tokens;
    if (every > 0) chunk = std::min(chunk, every - impl_->state.length() % every);
    const auto part = tokens.first(static_cast<std::size_t>(chunk));
    tokens = tokens.subspan(static_cast<std::size_t>(chunk));
    const BatchItem item{&impl_->state, part,
                         tokens.empty() ? BatchItem::Logits::last : BatchItem::Logits::none};
    HADAL_ASSIGN_OR_RETURN(const auto logits, engine.transformer->forward({&item, 1}));
    impl_->tokens.insert(impl_->tokens.end(), part.begin(), part.end());
    impl_->logits.assign(logits.begin(), logits.end());
    if (every > 0 && impl_->state.length() % every == 0) impl_->state.keep_checkpoint();
  }
  return {};
}

std::span<const float> Sequence::logits() const {
  return impl_->logits;
}
const std::vector<std::int32_t>& Sequence::tokens() const {
  return impl_->tokens;
}
std::int64_t Sequence::length() const {
  return impl_->state.length();
}
std::int64_t Sequence::state_bytes() const {
  return impl_->state.resident_bytes();
}

Sequence Sequence::fork() const {
  auto copy = std::make_unique<Impl>(impl_->engine, impl_->state.fork());
  copy->tokens = impl_->tokens;
  copy->logits = impl_->logits;
  return Sequence(std::move(copy));
}

Status Sequence::truncate(std::int64_t length) {
  HADAL_RETURN_IF_ERROR(impl_->state.truncate(length));
  impl_->tokens.resize(static_cast<std::size_t>(length));
  impl_->logits.clear();
  return {};
}

Status Sequence::save(const std::filesystem::path& path) const {
  std::filesystem::path ids_path = path;
  ids_path += ".tokens";
  const auto bytes = std::as_bytes(std::span(impl_->tokens));
  HADAL_RETURN_IF_ERROR(write_file(ids_path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  return impl_->state.save(path, static_cast<std::uint64_t>(impl_->engine->transformer->numerics()));
}

}  // namespace hadal
