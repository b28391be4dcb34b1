// hadal bench: decode and prefill speed at chosen depths, as fractions of what this machine measured beside.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "cli/bench_compare.h"
#include "cli/bench_disk.h"
#include "cli/bench_profile.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "engine/embedded.h"
#include "engine/sampler.h"
#include "model/init.h"
#include "model/transformer.h"
#include "plan/cost.h"
#include "plan/hardware.h"

namespace hadal::cli {
namespace {

struct BenchArguments {
  EngineOptions engine;
  std::string preset, compare;
  std::int64_t layers = 0, experts = 0, prefill = 512, chunk = 512, tokens = 16, batch = 1;
  std::vector<std::int64_t> contexts = {0};
  bool profile = false, json = false;
};

struct BenchRow {
  std::string phase;
  std::int64_t context = 0, batch = 1;
  double tokens_per_s = 0, read_gbps = 0;
  ArithmeticPeaks peaks;
  TokenCost cost;
  ForwardProfile profile;   // with --profile, of more forwards of the same kind
  DiskMeter disk{nullptr};  // with --memory
};

// Enough to miss every cache; a budget pays for it.
std::size_t bandwidth_buffer(const BenchArguments& arguments) {
  return arguments.engine.memory_bytes > 0 ? std::size_t{256} << 20 : std::size_t{1} << 30;
}

// Of the memory that the weights are in: what reading it alone reaches or, on a device, what copies move.
class Bandwidth {
 public:
  Bandwidth(const BenchArguments& arguments, Memory& memory, ThreadPool& pool) {
    if (memory.on_host())
      read_.emplace(bandwidth_buffer(arguments), pool);
    else
      copy_.emplace(std::size_t{4} << 30, memory);
  }
  double measure() { return read_ ? read_->measure() : copy_->measure(); }

 private:
  std::optional<ReadBandwidth> read_;
  std::optional<CopyBandwidth> copy_;
};

class Bench {
 public:
  Bench(const BenchArguments& arguments, const Model& model, StateFormat format, Transformer& transformer,
        ThreadPool& pool)
      : arguments_(arguments),
        model_(model),
        layout_(model.state_layout(format)),
        cost_model_(model.config()),
        transformer_(transformer),
        pool_(pool),
        bandwidth_(arguments, transformer.backend().memory(), pool) {
    bandwidth_.measure();
  }

  // With --memory: decodes until the cache of experts is full, as it is after a while in use.
  Status fill_cache() {
    ExpertCache* cache = model_.expert_cache();
    if (cache == nullptr) return {};
    std::vector<SequenceState> states = make_states(0, 1);
    for (int i = 0; i < kMostFillingSteps && cache->slots_used() < cache->slots(); ++i) {
      const auto tokens = random_tokens(1);
      const BatchItem item{&states[0], tokens, BatchItem::Logits::none};
      const auto logits = transformer_.forward({&item, 1});
      if (!logits) return tl::unexpected(logits.error());
    }
    return {};
  }
  static constexpr int kMostFillingSteps = 200;

  Result<BenchRow> decode(std::int64_t context) {
    std::vector<SequenceState> states = make_states(context);
    std::vector<double> seconds, reads;
    std::vector<ArithmeticPeaks> peaks;
    DiskMeter disk(model_.expert_cache());
    for (std::int64_t i = 0; i < arguments_.tokens + 1; ++i) {
      HADAL_ASSIGN_OR_RETURN(const double step, decode_step(states, nullptr));
      if (i > 0) seconds.push_back(step);  // the first touches what no later one must
      if (i == 0) disk.start();
      if (i % 4 == 0) {
        reads.push_back(bandwidth_.measure());
        peaks.push_back(measure_peaks(0.01));
        HADAL_RETURN_IF_ERROR(disk.measure());
      }
    }
    disk.stop(std::accumulate(seconds.begin(), seconds.end(), 0.0));
    BenchRow out = row("decode", context, arguments_.batch, arguments_.batch, seconds, reads, peaks);
    out.disk = disk;
    for (std::int64_t i = 0; arguments_.profile && i < arguments_.tokens; ++i) {
      HADAL_ASSIGN_OR_RETURN(const double step, decode_step(states, &out.profile.ops));
      out.profile.add_forward(step);
    }
    return out;
  }

  Result<BenchRow> prefill(std::int64_t context) {
    std::vector<double> seconds, reads;
    std::vector<ArithmeticPeaks> peaks;
    DiskMeter disk(model_.expert_cache());
    disk.start();
    for (int attempt = 0; attempt < (disk.active() ? 1 : 3); ++attempt) {
      peaks.push_back(measure_peaks(0.1));
      HADAL_ASSIGN_OR_RETURN(const double prompt, read_prompt(context, nullptr));
      seconds.push_back(prompt);
      peaks.push_back(measure_peaks(0.1));
      reads.push_back(bandwidth_.measure());
      HADAL_RETURN_IF_ERROR(disk.measure());
    }
    disk.stop(std::accumulate(seconds.begin(), seconds.end(), 0.0));
    BenchRow out = row("prefill", context, 1, arguments_.prefill, seconds, reads, peaks);
    out.disk = disk;
    if (arguments_.profile) HADAL_RETURN_IF_ERROR(read_prompt(context, &out.profile));
    return out;
  }

 private:
  // Those of a device are not measured here.
  ArithmeticPeaks measure_peaks(double seconds) const {
    return transformer_.backend().memory().on_host() ? measure_arithmetic(pool_, seconds) : ArithmeticPeaks{};
  }
  // Seconds of one step: the next token of every sequence and, if it is profiled, the choice of the one
  // after.
  Result<double> decode_step(std::vector<SequenceState>& states, Profile* profile) {
    const auto tokens = random_tokens(arguments_.batch);
    std::vector<BatchItem> batch;
    for (std::size_t s = 0; s < states.size(); ++s)
      batch.push_back({&states[s], std::span(tokens).subspan(s, 1), BatchItem::Logits::last});
    transformer_.backend().set_profile(profile);
    const auto start = std::chrono::steady_clock::now();
    const auto logits = transformer_.forward(batch);
    transformer_.backend().set_profile(nullptr);
    if (!logits) return tl::unexpected(logits.error());
    if (profile != nullptr) {
      const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
      SamplingOptions greedy;
      greedy.temperature = 0;
      const auto sampling = std::chrono::steady_clock::now();
      for (std::size_t s = 0; s < states.size(); ++s)
        sampler_.sample(logits->subspan(s * vocab, vocab), greedy, 0);
      profile->add({"sample", "greedy"}, since(sampling));
    }
    return since(start);
  }
  // Seconds of a whole prompt, in forwards of `chunk` tokens, behind `context` earlier ones.
  Result<double> read_prompt(std::int64_t context, ForwardProfile* profile) {
    std::vector<SequenceState> states = make_states(context, 1);
    const auto tokens = random_tokens(arguments_.prefill);
    double seconds = 0;
    for (std::int64_t at = 0; at < arguments_.prefill; at += arguments_.chunk) {
      const std::int64_t count = std::min(arguments_.chunk, arguments_.prefill - at);
      const BatchItem item{
          &states[0],
          std::span(tokens).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count)),
          BatchItem::Logits::last};
      transformer_.backend().set_profile(profile != nullptr ? &profile->ops : nullptr);
      const auto start = std::chrono::steady_clock::now();
      const auto logits = transformer_.forward({&item, 1});
      const double forward = since(start);
      transformer_.backend().set_profile(nullptr);
      if (!logits) return tl::unexpected(logits.error());
      if (profile != nullptr) profile->add_forward(forward);
      seconds += forward;
    }
    return seconds;
  }
  static double since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  static double mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }
  // Of rates over equal amounts of work: all the work over all the time.
  static double mean_rate(std::vector<double> rates) {
    for (double& rate : rates) rate = 1 / rate;
    return 1 / mean(rates);
  }
  static ArithmeticPeaks mean(const std::vector<ArithmeticPeaks>& samples) {
    ArithmeticPeaks out;
    const auto n = static_cast<double>(samples.size());
    for (const ArithmeticPeaks& sample : samples) {
      out.f32_gflops += sample.f32_gflops / n;
      out.bf16_gflops += sample.bf16_gflops / n;
      out.int8_gops += sample.int8_gops / n;
    }
    return out;
  }
  std::vector<SequenceState> make_states(std::int64_t context, std::int64_t count = 0) const {
    // At the very end of the context there must be room for what is timed.
    const std::int64_t room =
        model_.config().max_position_embeddings - std::max(arguments_.tokens + 1, arguments_.prefill);
    context = std::clamp<std::int64_t>(context, 0, std::max<std::int64_t>(room, 0));
    std::vector<SequenceState> states;
    for (std::int64_t i = 0; i < (count > 0 ? count : arguments_.batch); ++i) {
      states.emplace_back(layout_);
      if (context > 0) states.back().fill_synthetic(context, static_cast<std::uint64_t>(i) + 1);
    }
    return states;
  }
  std::vector<std::int32_t> random_tokens(std::int64_t count) {
    std::vector<std::int32_t> tokens;
    for (std::int64_t i = 0; i < count; ++i) {
      const double u = random_.uniform(drawn_++);
      tokens.push_back(static_cast<std::int32_t>(u * static_cast<double>(model_.config().vocab_size)));
    }
    return tokens;
  }
  BenchRow row(const char* phase, std::int64_t context, std::int64_t batch, std::int64_t tokens,
               const std::vector<double>& seconds, const std::vector<double>& reads,
               const std::vector<ArithmeticPeaks>& peaks) const {
    BenchRow out{.phase = phase,
                 .context = context,
                 .batch = batch,
                 .tokens_per_s = static_cast<double>(tokens) / mean(seconds),
                 .read_gbps = mean_rate(reads),
                 .peaks = mean(peaks),
                 .cost = {},
                 .profile = {}};
    const bool decoding = out.phase == "decode";
    const ForwardShape step{context, batch, 1, 1},
        chunk{context, 1, std::min(arguments_.chunk, arguments_.prefill), 1};
    out.cost = cost_model_(RowBytes::of(layout_), decoding ? step : chunk);
    return out;
  }

  const BenchArguments& arguments_;
  const Model& model_;
  const StateLayout& layout_;
  CostModel cost_model_;
  Transformer& transformer_;
  ThreadPool& pool_;
  Bandwidth bandwidth_;
  Sampler sampler_;
  Philox random_{1, 0};
  std::uint64_t drawn_ = 0;
};

MemoryBudget memory_budget(const BenchArguments& arguments, const Backend& backend) {
  const std::int64_t deepest = *std::max_element(arguments.contexts.begin(), arguments.contexts.end());
  const std::int64_t timed = std::max(arguments.tokens + 1, arguments.prefill);
  return {.bytes = arguments.engine.memory_bytes,
          .chunk_tokens = std::max(std::min(arguments.chunk, arguments.prefill), arguments.batch),
          .logit_rows = arguments.batch,
          .sequences = arguments.batch,
          .sequence_tokens = arguments.batch * (deepest + timed + kPageTokens) + 256,
          .other_bytes = static_cast<std::int64_t>(bandwidth_buffer(arguments)),
          .beside_weight = beside_weights(arguments.engine.numerics, backend)};
}

Result<Model> open_model(const BenchArguments& arguments, const Backend& backend, ThreadPool& pool) {
  const WeightCheck check = WeightCheck::before(arguments.engine.numerics, pool);
  if (!arguments.engine.model.empty())
    return Model::load(arguments.engine.model, arguments.engine.notice, memory_budget(arguments, backend),
                       check);
  if (arguments.preset.empty()) return load_embedded_model(arguments.engine.notice);
  HADAL_ASSIGN_OR_RETURN(Config config, preset_config(arguments.preset));
  HADAL_ASSIGN_OR_RETURN(config, cut_config(std::move(config), arguments.layers, arguments.experts));
  // Speed needs no drafter, and memory is short.
  config.compress_ratios.resize(static_cast<std::size_t>(config.num_hidden_layers));
  config.num_nextn_predict_layers = 0;
  notice("drawing random weights");
  HADAL_ASSIGN_OR_RETURN(Buffer<std::byte> image,
                         init_checkpoint_bytes(config, 1, StorageFormat::published, pool));
  HADAL_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::from_bytes(std::move(image), "random weights"));
  return Model::bind(std::move(config), std::move(checkpoint), arguments.engine.notice, {}, check);
}

// --compare: the same depths, other defaults.
Status compare(const BenchArguments& arguments, bool contexts_given) {
  HADAL_RETURN_IF_ERROR(apply_memory_options(arguments.engine));
  ThreadPool pool(arguments.engine.threads, arguments.engine.pin_threads);
  HADAL_ASSIGN_OR_RETURN(const auto backend,
                         make_backend(arguments.engine.backend, arguments.engine.isa, pool));
  CompareRequest request;
  request.baseline = arguments.compare;
  if (!arguments.preset.empty()) request.presets = {arguments.preset};
  if (contexts_given) request.contexts = arguments.contexts;
  request.steps = std::max<std::int64_t>(1, arguments.tokens / 2);
  request.json = arguments.json;
  if (!arguments.engine.numerics.empty()) {
    HADAL_ASSIGN_OR_RETURN(request.numerics, numerics_from_string(arguments.engine.numerics));
  }
  return compare_models(request, *backend, pool);
}

Status bench(const BenchArguments& arguments) {
  if (!arguments.engine.model.empty() && !arguments.preset.empty())
    return fail(ErrorCode::invalid_argument, "give either -m MODEL or --preset flash, pro or v3.2, not both");
  if (arguments.profile && arguments.engine.backend == "cuda")
    return fail(ErrorCode::invalid_argument, "--profile times the ops of the CPU; a device does them later");
  if (arguments.engine.memory_bytes > 0 && arguments.engine.model.empty())
    return fail(ErrorCode::invalid_argument,
                "--memory needs -m MODEL: random weights of --preset, and the embedded model, are in memory");
  HADAL_RETURN_IF_ERROR(apply_memory_options(arguments.engine));
  ThreadPool pool(arguments.engine.threads, arguments.engine.pin_threads);
  HADAL_ASSIGN_OR_RETURN(const auto backend,
                         make_backend(arguments.engine.backend, arguments.engine.isa, pool));
  HADAL_ASSIGN_OR_RETURN(const Model model, open_model(arguments, *backend, pool));
  Numerics numerics = model.quantised() ? Numerics::official : Numerics::exact;
  if (!arguments.engine.numerics.empty()) {
    HADAL_ASSIGN_OR_RETURN(numerics, numerics_from_string(arguments.engine.numerics));
  }
  HADAL_ASSIGN_OR_RETURN(const StateFormat format,
                         choose_state_format(arguments.engine.state, quantises_rows(numerics)));
  HADAL_RETURN_IF_ERROR(check_numerics(model, numerics, *backend));
  Transformer transformer(model, *backend, numerics);
  if (transformer.prepared().bytes > 0) notice(transformer.prepared().to_string());
  Bench runner(arguments, model, format, transformer, pool);
  HADAL_RETURN_IF_ERROR(runner.fill_cache());
  // Those of a device are not measured here.
  const bool on_host = backend->memory().on_host();
  const ArithmeticPeaks peaks = on_host ? measure_arithmetic(pool) : ArithmeticPeaks{};

  const bool against_int8 = numerics == Numerics::int8 && peaks.int8_gops > 0;

  nlohmann::ordered_json out;
  out["isa"] = backend->name();
  out["threads"] = pool.size();
  out["numerics"] = to_string(numerics);
  out["state"] = to_string(format);
  out["peak_gflops"] = std::max(peaks.f32_gflops, peaks.bf16_gflops);
  out["f32_peak_gflops"] = peaks.f32_gflops;
  out["bf16_peak_gflops"] = peaks.bf16_gflops;
  out["int8_gops"] = peaks.int8_gops;
  out["rows"] = nlohmann::ordered_json::array();
  double reads = 0;
  std::string tables;  // the profiles, printed behind the rows
  if (arguments.profile) out["profile"] = nlohmann::ordered_json::array();
  if (!arguments.json) {
    const std::string name(backend->name()), mode(to_string(numerics));
    if (on_host) {
      std::printf(
          "%s on %d threads, %s numerics; peaks: %.0f GFLOP/s in float32, %.0f in BF16, %.0f Gop/s in int8\n",
          name.c_str(), pool.size(), mode.c_str(), peaks.f32_gflops, peaks.bf16_gflops, peaks.int8_gops);
    } else {
      std::printf("%s, %s numerics\n", name.c_str(), mode.c_str());
    }
    std::printf("%-8s %9s %6s %10s %12s %10s %12s %10s%s\n", "phase", "context", "batch", "tokens/s",
                "MB/token", on_host ? "of read" : "of copy", "GFLOP/token", on_host ? "of peak" : "TFLOP/s",
                against_int8 ? " of int8 peak" : "");
  }
  for (const std::int64_t context : arguments.contexts) {
    for (const bool decoding : {true, false}) {
      if (decoding ? arguments.tokens == 0 : arguments.prefill == 0) continue;
      HADAL_ASSIGN_OR_RETURN(const BenchRow r, decoding ? runner.decode(context) : runner.prefill(context));
      const double bandwidth_fraction = r.cost.bytes() * r.tokens_per_s / 1e9 / r.read_gbps;
      const double gflops = r.cost.flops() * r.tokens_per_s / 1e9;
      const double peak_fraction = gflops / std::max(r.peaks.f32_gflops, r.peaks.bf16_gflops);
      reads = std::max(reads, r.read_gbps);
      out["rows"].push_back({{"phase", r.phase},
                             {"context", r.context},
                             {"batch", r.batch},
                             {"tokens_per_s", r.tokens_per_s},
                             {"bytes_per_token", r.cost.bytes()},
                             {"bandwidth_fraction", bandwidth_fraction},
                             {"flops_per_token", r.cost.flops()},
                             {"gflops", gflops},
                             {"read_gbps", r.read_gbps}});
      if (on_host) out["rows"].back()["peak_fraction"] = peak_fraction;
      if (against_int8) out["rows"].back()["int8_peak_fraction"] = gflops / r.peaks.int8_gops;
      if (r.disk.active()) out["rows"].back()["disk"] = r.disk.json();
      if (arguments.profile) {
        out["profile"].push_back(to_json(r.profile, r.phase, r.context));
        tables += to_table(r.profile, r.phase, r.context);
      }
      if (!arguments.json) {
        std::printf("%-8s %9lld %6lld %10.2f %12.1f %9.1f%% %12.2f ", r.phase.c_str(),
                    static_cast<long long>(r.context), static_cast<long long>(r.batch), r.tokens_per_s,
                    r.cost.bytes() / 1e6, 100 * bandwidth_fraction, r.cost.flops() / 1e9);
        on_host ? std::printf("%9.1f%%", 100 * peak_fraction) : std::printf("%10.1f", gflops / 1e3);
        if (against_int8) std::printf(" %11.1f%%", 100 * gflops / r.peaks.int8_gops);
        std::printf("\n");
        if (r.disk.active()) std::printf("%s\n", r.disk.line().c_str());
        std::fflush(stdout);
      }
    }
  }
  out["read_gbps"] = reads;
  if (const MemoryPlan* plan = model.memory_plan()) {
    out["memory"] = {{"budget", plan->budget},         {"peak", peak_memory_bytes()}, {"dense", plan->dense},
                     {"scratch", plan->scratch},       {"state", plan->state},        {"slots", plan->slots},
                     {"slot_bytes", plan->slot_bytes}, {"experts", plan->experts}};
    if (!arguments.json) {
      std::printf("memory: at most %.2f GB resident, %.1f%% of the budget\n",
                  static_cast<double>(peak_memory_bytes()) / 1e9,
                  100 * static_cast<double>(peak_memory_bytes()) / static_cast<double>(plan->budget));
    }
  }
  if (arguments.json) {
    std::printf("%s\n", out.dump(2).c_str());
  } else {
    std::printf("%s bandwidth measured between the steps: up to %.1f GB/s\n%s", on_host ? "read" : "copy",
                reads, tables.c_str());
  }
  return {};
}

}  // namespace

void register_bench(CLI::App& app, Outcome& outcome) {
  auto* command =
      app.add_subcommand("bench", "Decode and prefill speed, as fractions of this machine's measured limits");
  auto arguments = std::make_shared<BenchArguments>();
  add_engine_options(*command, arguments->engine);
  command->add_option("--preset", arguments->preset,
                      "flash, pro or v3.2 with random weights in memory, instead of -m");
  command->add_option("--layers", arguments->layers, "With --preset: only the first so many layers")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--experts", arguments->experts, "With --preset: only so many routed experts")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--context", arguments->contexts,
                   "Depths, in tokens; the state is filled with random rows")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 30))
      ->capture_default_str();
  command->add_option("--prefill", arguments->prefill, "Prompt tokens to time at each depth; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--chunk", arguments->chunk, "Prompt tokens per forward")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--decode", arguments->tokens, "Decode steps to time at each depth; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--batch", arguments->batch, "Sequences that decode together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--compare", arguments->compare,
                   "Decode with layers of this model's true shapes and of Flash's and Pro's (or --preset's)")
      ->check(CLI::IsMember({"v3.2", "flash", "pro"}))
      ->excludes("--model");
  command->add_flag("--profile", arguments->profile, "Also where the time of a forward goes, op by op");
  command->add_flag("--json", arguments->json, "JSON on stdout");
  command->footer("Example: hadal bench --preset flash --layers 4 --experts 32 --context 0,4096,131072");
  command->callback([arguments, command, &outcome] {
    const bool contexts_given = command->count("--context") > 0;
    const Status done = arguments->compare.empty() ? bench(*arguments) : compare(*arguments, contexts_given);
    if (!done) outcome.exit_code = report(done.error());
  });
}

}  // namespace hadal::cli
