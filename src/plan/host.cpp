#include "plan/host.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include <fmt/format.h>

#include "base/rng.h"
#include "model/init.h"
#include "model/transformer.h"
#include "plan/hardware.h"
#include "plan/roofline.h"

namespace hadal {
namespace {

constexpr std::int64_t kDepth = 32768, kSteps = 15, kChunk = 256, kChunks = 3;
constexpr std::int64_t kExperts = 16, kVocabulary = 16384;

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// A forward: seconds (the medians of several) and work of each class, seconds of everything else.
struct Timed {
  std::array<double, kOpClasses> seconds{}, flops{}, weight_bytes{};
  double other_seconds = 0, total_seconds = 0;
};

// Forwards of one kind, in the order in which they ran.
class Samples {
 public:
  void add(const Timed& one) { all_.push_back(one); }
  // The median second of everything, the mean work.
  Timed typical() const {
    Timed out;
    const auto n = static_cast<double>(all_.size());
    for (std::size_t c = 0; c < kOpClasses; ++c) {
      out.seconds[c] = median_of([c](const Timed& t) { return t.seconds[c]; });
      for (const Timed& t : all_) {
        out.flops[c] += t.flops[c] / n;
        out.weight_bytes[c] += t.weight_bytes[c] / n;
      }
    }
    out.other_seconds = median_of([](const Timed& t) { return t.other_seconds; });
    out.total_seconds = median_of([](const Timed& t) { return t.total_seconds; });
    return out;
  }

 private:
  template <class Value>
  double median_of(Value&& value) const {
    std::vector<double> values;
    for (const Timed& t : all_) values.push_back(value(t));
    return median(values);
  }
  std::vector<Timed> all_;
};

// One layer of each kind of a model, ready to run.
class HostLayers {
 public:
  static Result<std::unique_ptr<HostLayers>> make(const Config& config, Numerics numerics, Backend& backend,
                                                  ThreadPool& pool) {
    const Config cut = layers_of_each_kind(config, kExperts, kVocabulary);
    HADAL_ASSIGN_OR_RETURN(Buffer<std::byte> image,
                           init_checkpoint_bytes(cut, 1, StorageFormat::published, pool));
    HADAL_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::from_bytes(std::move(image), "random weights"));
    HADAL_ASSIGN_OR_RETURN(Model model, Model::bind(cut, std::move(checkpoint)));
    HADAL_RETURN_IF_ERROR(check_numerics(model, numerics, backend));
    return std::make_unique<HostLayers>(std::move(model), numerics, backend);
  }
  HostLayers(Model bound, Numerics numerics, Backend& backend)
      : model(std::move(bound)),
        transformer(model, backend, numerics),
        layout(model.state_layout(quantises_rows(numerics) ? StateFormat::compact : StateFormat::f32)),
        costs(model.config()) {}

  SequenceState state_at(std::int64_t context) const {
    SequenceState state(layout);
    state.fill_synthetic(context, 1);
    return state;
  }

  Result<Timed> forward(SequenceState& state, std::int64_t tokens) {
    std::vector<std::int32_t> ids;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double u = random_.uniform(drawn_++);
      ids.push_back(static_cast<std::int32_t>(u * static_cast<double>(model.config().vocab_size)));
    }
    Profile profile;
    const BatchItem item{&state, ids, BatchItem::Logits::all};
    transformer.backend().set_profile(&profile);
    const auto start = std::chrono::steady_clock::now();
    const auto logits = transformer.forward({&item, 1});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    transformer.backend().set_profile(nullptr);
    if (!logits) return tl::unexpected(logits.error());
    Timed timed;
    timed.total_seconds = timed.other_seconds = seconds;
    for (const Profile::Entry& entry : profile.entries()) {
      const auto op = class_of(entry.work);
      if (!op) continue;
      const auto i = static_cast<std::size_t>(*op);
      timed.seconds[i] += entry.seconds;
      timed.flops[i] += entry.work.flops;
      timed.weight_bytes[i] += entry.work.weight_bytes;
      timed.other_seconds -= entry.seconds;
    }
    return timed;
  }

  // The rate of each class: bytes from decode steps, operations from chunks of a prompt.
  void fit(const Timed& decode, const Timed& prompt, HardwareProfile& profile) const {
    const TokenCost cost = costs(RowBytes::of(layout), {kDepth, 1, 1, 1});
    for (std::size_t i = 0; i < kOpClasses; ++i) {
      if (decode.seconds[i] <= 0 || prompt.seconds[i] <= 0) continue;
      const double bytes = decode.weight_bytes[i] + cost.classes[i].state_bytes;
      profile.classes[i] = {bytes / decode.seconds[i] / 1e9, prompt.flops[i] / prompt.seconds[i] / 1e9};
    }
    profile.classes[static_cast<std::size_t>(OpClass::shared)] =
        profile.classes[static_cast<std::size_t>(OpClass::experts)];
    const auto layers = static_cast<double>(model.config().num_hidden_layers);
    profile.layer_us = 1e6 * decode.other_seconds / layers;
    profile.token_us = 1e6 * prompt.other_seconds / static_cast<double>(kChunk) / layers;
  }

  Model model;
  Transformer transformer;
  const StateLayout& layout;
  CostModel costs;

 private:
  Philox random_{1, 0};
  std::uint64_t drawn_ = 0;
};

}  // namespace

std::optional<OpClass> class_of(const OpWork& work) {
  const auto named = [&](std::string_view part) {
    return work.parameter.find(part) != std::string_view::npos;
  };
  if (work.op == "experts") return OpClass::experts;
  if (work.op == "index_select" || work.op == "index_scores") return OpClass::index_scores;
  if (work.op == "sparse_attention") return OpClass::core_attention;
  if (work.op != "linear") return std::nullopt;
  if (named("head") && !named("hc_")) return OpClass::head;
  if (named("hc_")) return OpClass::hyper_connection;
  if (named("wo_a") || named("absorbed")) return OpClass::grouped;
  if (named("compressor") || named("weights_proj")) return OpClass::compressors;
  if (work.parameter.ends_with(".gate")) return OpClass::router;
  return OpClass::projections;
}

Config layers_of_each_kind(const Config& config, std::int64_t experts, std::int64_t vocab_size) {
  Config cut = config;
  cut.num_nextn_predict_layers = cut.num_hash_layers = 0;
  std::vector<std::int64_t> ratios;
  for (std::int64_t block = 0; block < config.num_hidden_layers; ++block) {
    const std::int64_t ratio = config.compress_ratio(block);
    if (std::find(ratios.begin(), ratios.end(), ratio) == ratios.end()) ratios.push_back(ratio);
  }
  if (cut.v32) {  // a dense layer and one with experts
    cut.v32->first_k_dense_replace = std::min<std::int64_t>(1, config.v32->first_k_dense_replace);
    cut.v32->n_group = cut.v32->topk_group = 1;
    if (cut.v32->first_k_dense_replace > 0) ratios.push_back(1);
  }
  cut.compress_ratios = ratios;
  cut.num_hidden_layers = static_cast<std::int64_t>(ratios.size());
  cut.n_routed_experts = std::min(config.n_routed_experts, std::max(experts, config.num_experts_per_tok));
  cut.vocab_size = std::min(config.vocab_size, vocab_size);
  cut.max_position_embeddings = std::max(config.max_position_embeddings, std::int64_t{1} << 21);
  return cut;
}

Result<HardwareProfile> measure_host(const Config& config, Numerics numerics, Backend& backend,
                                     ThreadPool& pool) {
  HADAL_ASSIGN_OR_RETURN(const auto layers, HostLayers::make(config, numerics, backend, pool));
  SequenceState state = layers->state_at(kDepth);
  HardwareProfile profile;
  profile.name = "host";
  const double memory =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  profile.memory_gb = memory / 1e9;
  ReadBandwidth bandwidth(std::size_t{256} << 20, pool);
  Samples decode, prompt;
  for (std::int64_t i = 0; i <= kSteps; ++i) {  // the first touches what no later one must
    HADAL_ASSIGN_OR_RETURN(const Timed one, layers->forward(state, 1));
    if (i > 0) decode.add(one);
    profile.memory_gbps = std::max(profile.memory_gbps, bandwidth.measure());
  }
  for (std::int64_t i = 0; i <= kChunks; ++i) {
    HADAL_ASSIGN_OR_RETURN(const Timed one, layers->forward(state, kChunk));
    if (i > 0) prompt.add(one);
  }
  layers->fit(decode.typical(), prompt.typical(), profile);
  const ArithmeticPeaks peaks = measure_arithmetic(pool);
  const double wide = std::max(peaks.f32_gflops, peaks.bf16_gflops) / 1e3;
  profile.bf16_tflops = profile.fp8_tflops = wide;
  profile.fp4_tflops = std::max(peaks.int8_gops / 1e3, wide);
  profile.storage_gbps = 1;
  profile.title = fmt::format("this machine, {} on {} threads, {} numerics", backend.name(), pool.size(),
                              to_string(numerics));
  profile.source = fmt::format(
      "measured: {:.1f} GB/s read, {:.0f} GFLOP/s in float32, {:.0f} in BF16, {:.0f} Gop/s in int8, and the "
      "classes by running layers; watts and price_usd are not known and 0, storage_gbps is assumed",
      profile.memory_gbps, peaks.f32_gflops, peaks.bf16_gflops, peaks.int8_gops);
  return profile;
}

Result<std::vector<HostCheck>> check_host(const Config& config, std::span<const std::int64_t> contexts,
                                          Numerics numerics, Backend& backend, ThreadPool& pool) {
  HADAL_ASSIGN_OR_RETURN(const auto layers, HostLayers::make(config, numerics, backend, pool));
  std::vector<HostCheck> checks;
  for (const std::int64_t context : contexts) {
    SequenceState fitted = layers->state_at(kDepth), checked = layers->state_at(context);
    // In turn, because the machine changes from minute to minute.
    std::array<Samples, 4> samples;
    for (std::int64_t i = 0; i <= kSteps + kChunks; ++i) {
      const bool chunk = i > kSteps;
      for (std::size_t which = 0; which < 2; ++which) {
        HADAL_ASSIGN_OR_RETURN(const Timed one,
                               layers->forward(which == 0 ? fitted : checked, chunk ? kChunk : 1));
        if (i > 0) samples[2 * which + (chunk ? 1 : 0)].add(one);
      }
    }
    HardwareProfile profile;
    layers->fit(samples[0].typical(), samples[1].typical(), profile);
    const RowBytes rows = RowBytes::of(layers->layout);
    HostCheck check;
    check.context = context;
    check.decode = 1 / samples[2].typical().total_seconds;
    check.prefill = static_cast<double>(kChunk) / samples[3].typical().total_seconds;
    check.planned_decode = estimate_forward(layers->costs, rows, profile, {context, 1, 1, 1}).tokens_per_s;
    check.planned_prefill =
        estimate_forward(layers->costs, rows, profile, {context, 1, kChunk, kChunk}).tokens_per_s;
    checks.push_back(check);
  }
  return checks;
}

}  // namespace hadal
