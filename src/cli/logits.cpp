// hadal logits: the model's raw answer, for checks against other implementations.
#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "formats/safetensors_writer.h"
#include "model/transformer.h"

namespace hadal::cli {
namespace {

struct LogitsArguments {
  EngineOptions engine;
  std::string tokens, out;
  std::int64_t prefill = -1;
  std::int64_t chunk = 512;
  bool mtp = false;
};

using Sequences = std::vector<std::vector<std::int32_t>>;

Result<Sequences> read_tokens(const std::string& path) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(path));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  const auto bad = [&](const char* what) {
    return fail(ErrorCode::corrupt,
                fmt::format("{}: {}; expected a JSON array of token ids, or of such arrays", path, what));
  };
  if (!json.is_array() || json.empty()) return bad("not a JSON array with something in it");
  Sequences sequences;
  const auto read_one = [&](const nlohmann::json& ids) {
    auto& sequence = sequences.emplace_back();
    for (const auto& id : ids) {
      constexpr std::int64_t kMaxId = std::int64_t{1} << 30;
      if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > kMaxId)
        return false;
      sequence.push_back(static_cast<std::int32_t>(id.get<std::int64_t>()));
    }
    return !sequence.empty();
  };
  if (!json[0].is_array()) {
    if (!read_one(json)) return bad("an element is not a token id");
    return sequences;
  }
  for (const auto& ids : json) {
    if (!ids.is_array() || !read_one(ids)) return bad("an element is not a non-empty array of token ids");
  }
  return sequences;
}

// Appends the logits of `tokens`, all of them, to `out`; the streams too when asked.
Status run_tokens(Transformer& transformer, std::vector<SequenceState>& states, const Sequences& sequences,
                  const LogitsArguments& arguments, std::vector<std::vector<float>>& logits,
                  std::vector<float>* streams) {
  // Every sequence by prefill in chunks up to --prefill, then token by token; all sequences in one batch.
  std::vector<std::size_t> at(sequences.size(), 0);
  for (;;) {
    std::vector<BatchItem> batch;
    std::vector<std::size_t> who;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const std::size_t left = sequences[i].size() - at[i];
      if (left == 0) continue;
      const std::size_t prefill =
          arguments.prefill < 0 ? sequences[i].size() : static_cast<std::size_t>(arguments.prefill);
      const std::size_t count =
          at[i] < prefill ? std::min({left, prefill - at[i], static_cast<std::size_t>(arguments.chunk)}) : 1;
      batch.push_back({&states[i], std::span(sequences[i]).subspan(at[i], count), BatchItem::Logits::all});
      who.push_back(i);
    }
    if (batch.empty()) return {};
    HADAL_ASSIGN_OR_RETURN(auto rows, transformer.forward(batch));
    if (streams != nullptr)
      streams->insert(streams->end(), transformer.streams().begin(), transformer.streams().end());
    const auto vocab = static_cast<std::size_t>(transformer.model().config().vocab_size);
    for (std::size_t b = 0; b < batch.size(); ++b) {
      const auto part = rows.first(batch[b].tokens.size() * vocab);
      rows = rows.subspan(part.size());
      logits[who[b]].insert(logits[who[b]].end(), part.begin(), part.end());
      at[who[b]] += batch[b].tokens.size();
    }
  }
}

// Everything about the work is known: each forward takes a chunk of every sequence, and all logits are kept.
MemoryBudget memory_budget(const LogitsArguments& arguments, const Sequences& sequences,
                           const Backend& backend) {
  std::int64_t tokens = 0, chunk = 0;
  for (const auto& sequence : sequences) {
    tokens += static_cast<std::int64_t>(sequence.size());
    chunk += std::min(arguments.chunk, static_cast<std::int64_t>(sequence.size()));
  }
  // The MTP block reads its one sequence in one forward.
  if (arguments.mtp) chunk = tokens;
  return {.bytes = arguments.engine.memory_bytes,
          .chunk_tokens = chunk,
          .logit_rows = tokens + chunk,
          .sequences = static_cast<std::int64_t>(sequences.size()),
          .sequence_tokens = tokens + kPageTokens * static_cast<std::int64_t>(sequences.size()),
          .beside_weight = beside_weights(arguments.engine.numerics, backend)};
}

Status logits(const LogitsArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const Sequences sequences, read_tokens(arguments.tokens));
  if (arguments.mtp && (sequences.size() > 1 || sequences[0].size() < 2)) {
    return fail(ErrorCode::invalid_argument, "--mtp takes one sequence of at least two tokens");
  }
  HADAL_RETURN_IF_ERROR(apply_memory_options(arguments.engine));
  ThreadPool pool(arguments.engine.threads, arguments.engine.pin_threads);
  HADAL_ASSIGN_OR_RETURN(const auto backend,
                         make_backend(arguments.engine.backend, arguments.engine.isa, pool));
  HADAL_ASSIGN_OR_RETURN(const Model model,
                         Model::load(arguments.engine.model, arguments.engine.notice,
                                     memory_budget(arguments, sequences, *backend),
                                     WeightCheck::before(arguments.engine.numerics, pool)));
  Numerics numerics = model.quantised() ? Numerics::official : Numerics::exact;
  if (!arguments.engine.numerics.empty()) {
    HADAL_ASSIGN_OR_RETURN(numerics, numerics_from_string(arguments.engine.numerics));
  }
  if (arguments.mtp && model.weights().mtp.empty()) {
    return fail(ErrorCode::unsupported,
                fmt::format("{}: --mtp: the model has no MTP block", arguments.engine.model.string()));
  }
  HADAL_ASSIGN_OR_RETURN(const StateFormat format,
                         choose_state_format(arguments.engine.state, quantises_rows(numerics)));
  HADAL_RETURN_IF_ERROR(check_numerics(model, numerics, *backend));
  Transformer transformer(model, *backend, numerics);
  std::vector<SequenceState> states;
  for (std::size_t i = 0; i < sequences.size(); ++i) states.emplace_back(model.state_layout(format));
  std::vector<std::vector<float>> rows(sequences.size());
  std::vector<float> streams;
  HADAL_RETURN_IF_ERROR(
      run_tokens(transformer, states, sequences, arguments, rows, arguments.mtp ? &streams : nullptr));

  std::int64_t tokens = 0;
  for (const auto& sequence : sequences) tokens += static_cast<std::int64_t>(sequence.size());
  std::vector<AnnouncedTensor> tensors = {{"logits", DType::f32, {tokens, model.config().vocab_size}}};
  if (arguments.mtp) tensors.push_back({"mtp_logits", DType::f32, {tokens - 1, model.config().vocab_size}});
  HADAL_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(arguments.out, tensors));
  for (const auto& part : rows) HADAL_RETURN_IF_ERROR(writer.write(std::as_bytes(std::span(part))));
  if (arguments.mtp) {
    const auto n = static_cast<std::size_t>(tokens - 1);
    HADAL_ASSIGN_OR_RETURN(
        const auto mtp_logits,
        transformer.forward_mtp(states[0], std::span(streams).first(streams.size() / (n + 1) * n),
                                std::span(sequences[0]).subspan(1)));
    HADAL_RETURN_IF_ERROR(writer.write(std::as_bytes(mtp_logits)));
  }
  return writer.commit();
}

}  // namespace

void register_logits(CLI::App& app, Outcome& outcome) {
  auto* command = app.add_subcommand("logits", "Logits of given tokens, as a safetensors file");
  auto arguments = std::make_shared<LogitsArguments>();
  add_engine_options(*command, arguments->engine);
  // The implementations that logits are compared with keep rope entries in float32.
  arguments->engine.state = "f32";
  command->get_option("--state")
      ->description("How rows are kept: f32 or compact (FP8, FP4)")
      ->capture_default_str();
  command->get_option("--model")->required();
  command->add_option("--tokens", arguments->tokens, "JSON array of token ids, or of arrays for a batch")
      ->required()
      ->type_name("FILE");
  command->add_option("--out", arguments->out, "Written: logits F32 [tokens, vocab] (and mtp_logits)")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--prefill", arguments->prefill,
                   "Tokens to read by prefill, the rest one at a time; default all")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--chunk", arguments->chunk, "Tokens per prefill step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--mtp", arguments->mtp, "Also the MTP block's logits [tokens-1, vocab] (one sequence)");
  command->footer(
      "Example: hadal logits -m MODEL --tokens ids.json --out logits.safetensors --numerics exact");
  command->callback([arguments, &outcome] {
    if (const Status done = logits(*arguments); !done) outcome.exit_code = report(done.error());
  });
}

}  // namespace hadal::cli
