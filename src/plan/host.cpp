#include "plan/host.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <set>

#include <fmt/format.h>

#include "base/rng.h"
#include "model/init.h"
#include "model/transformer.h"
#include "plan/hardware.h"

namespace hadal {
namespace {

constexpr std::int64_t kDepth = 32768, kSteps = 15, kChunk = 512, kChunks = 3;
constexpr std::int64_t kExperts = 16, kVocabulary = 16384;

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// A forward: seconds (the medians of several) and work of each class, seconds of everything else.
struct Timed {
  std::array<double, kOpClasses> seconds{}, flops{}, weight_bytes{};
  double other_seconds = 0;
};

class Calibration {
 public:
  Calibration(const Model& model, Transformer& transformer, StateFormat format)
      : model_(model), transformer_(transformer), state_(model.state_layout(format)) {
    state_.fill_synthetic(kDepth, 1);
  }

  // The first forward is not counted: it touches what no later one must.
  Result<Timed> run(std::int64_t forwards, std::int64_t tokens) {
    Timed timed;
    std::array<std::vector<double>, kOpClasses> seconds_of;
    std::vector<double> other;
    for (std::int64_t i = 0; i <= forwards; ++i) {
      std::vector<std::int32_t> ids;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double u = random_.uniform(drawn_++);
        ids.push_back(static_cast<std::int32_t>(u * static_cast<double>(model_.config().vocab_size)));
      }
      Profile profile;
      const BatchItem item{&state_, ids, BatchItem::Logits::all};
      transformer_.backend().set_profile(&profile);
      const auto start = std::chrono::steady_clock::now();
      const auto logits = transformer_.forward({&item, 1});
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      transformer_.backend().set_profile(nullptr);
      if (!logits) return tl::unexpected(logits.error());
      if (i == 0) continue;
      const Timed one = by_class(profile, seconds);
      for (std::size_t c = 0; c < kOpClasses; ++c) {
        seconds_of[c].push_back(one.seconds[c]);
        timed.flops[c] = one.flops[c];
        timed.weight_bytes[c] += one.weight_bytes[c] / static_cast<double>(forwards);
      }
      other.push_back(one.other_seconds);
    }
    for (std::size_t c = 0; c < kOpClasses; ++c) timed.seconds[c] = median(seconds_of[c]);
    timed.other_seconds = median(other);
    return timed;
  }

 private:
  static Timed by_class(const Profile& profile, double seconds) {
    Timed timed;
    timed.other_seconds = seconds;
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

  const Model& model_;
  Transformer& transformer_;
  SequenceState state_;
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
  const Config cut = layers_of_each_kind(config, kExperts, kVocabulary);
  HADAL_ASSIGN_OR_RETURN(Buffer<std::byte> image,
                         init_checkpoint_bytes(cut, 1, StorageFormat::published, pool));
  HADAL_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::from_bytes(std::move(image), "random weights"));
  HADAL_ASSIGN_OR_RETURN(const Model model, Model::bind(cut, std::move(checkpoint)));
  HADAL_RETURN_IF_ERROR(check_numerics(model, numerics));
  Transformer transformer(model, backend, numerics);
  const StateFormat format = quantises_rows(numerics) ? StateFormat::compact : StateFormat::f32;
  Calibration calibration(model, transformer, format);

  HardwareProfile profile;
  profile.name = "host";
  const double memory =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  profile.memory_gb = memory / 1e9;
  ReadBandwidth bandwidth(std::size_t{256} << 20, pool);
  HADAL_ASSIGN_OR_RETURN(const Timed decode, calibration.run(kSteps, 1));
  for (int i = 0; i < 5; ++i) profile.memory_gbps = std::max(profile.memory_gbps, bandwidth.measure());
  HADAL_ASSIGN_OR_RETURN(const Timed prompt, calibration.run(kChunks, kChunk));
  const ArithmeticPeaks peaks = measure_arithmetic(pool);
  const double wide = std::max(peaks.f32_gflops, peaks.bf16_gflops) / 1e3;
  profile.bf16_tflops = profile.fp8_tflops = wide;
  profile.fp4_tflops = std::max(peaks.int8_gops / 1e3, wide);

  const CostModel cost_model(cut);
  const TokenCost cost = cost_model(RowBytes::of(model.state_layout(format)), {kDepth, 1, 1, 1});
  for (std::size_t i = 0; i < kOpClasses; ++i) {
    if (decode.seconds[i] <= 0 || prompt.seconds[i] <= 0) continue;
    const double bytes = decode.weight_bytes[i] + cost.classes[i].state_bytes;
    profile.classes[i] = {bytes / decode.seconds[i] / 1e9, prompt.flops[i] / prompt.seconds[i] / 1e9};
  }
  profile.classes[static_cast<std::size_t>(OpClass::shared)] =
      profile.classes[static_cast<std::size_t>(OpClass::experts)];
  const auto layers = static_cast<double>(cut.num_hidden_layers);
  profile.layer_us = 1e6 * decode.other_seconds / layers;
  profile.token_us = 1e6 * prompt.other_seconds / static_cast<double>(kChunk) / layers;
  profile.storage_gbps = 1;
  profile.title = fmt::format("this machine, {} on {} threads, {} numerics", backend.name(), pool.size(),
                              to_string(numerics));
  profile.source = fmt::format(
      "measured: {:.1f} GB/s read, {:.0f} GFLOP/s in float32, {:.0f} in BF16, {:.0f} Gop/s in int8, and the "
      "classes by running layers; watts and price_usd are not known and 0, storage_gbps is assumed",
      profile.memory_gbps, peaks.f32_gflops, peaks.bf16_gflops, peaks.int8_gops);
  return profile;
}

}  // namespace hadal
