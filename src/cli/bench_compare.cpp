#include "cli/bench_compare.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iterator>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "cli/engine_options.h"
#include "model/init.h"
#include "model/transformer.h"
#include "plan/host.h"

namespace hadal::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kExperts = 16, kVocabulary = 8192;

// A kind of layer at one depth: how many the model has, and what one takes.
struct Part {
  std::string kind;
  std::int64_t count = 0;
  double seconds = 0, flops = 0;  // of one
};

struct CompareRow {
  std::int64_t context = 0;
  std::vector<Part> parts;
  double kv_bytes = 0;  // of the whole model's state, as allocated
  double planned_flops = 0, planned_kv_bytes = 0;

  double seconds() const {
    double sum = 0;
    for (const Part& p : parts) sum += static_cast<double>(p.count) * p.seconds;
    return sum;
  }
  double flops() const {
    double sum = 0;
    for (const Part& p : parts) sum += static_cast<double>(p.count) * p.flops;
    return sum;
  }
};

std::string kind_of(const Config& config, std::int64_t block) {
  switch (config.attention_kind(block)) {
    case AttentionKind::sliding:
      return "sliding";
    case AttentionKind::csa:
      return "CSA";
    case AttentionKind::hca:
      return "HCA";
    case AttentionKind::dsa:
      return config.dense_ffn(block) ? "DSA, dense" : "DSA, experts";
  }
  return "";
}

class Comparison {
 public:
  Comparison(const Config& full, const Model& model, Transformer& transformer, StateFormat format,
             std::int64_t steps)
      : full_(full),
        full_layout_(full, format),
        model_(model),
        transformer_(transformer),
        format_(format),
        steps_(steps),
        planned_(full) {}

  Result<CompareRow> row(std::int64_t context) {
    const Config& config = model_.config();
    SequenceState state(model_.state_layout(format_));
    state.fill_synthetic(context - 1, 1);
    state.prepare_append(1);
    CompareRow row;
    row.context = context;
    for (std::int64_t block = 0; block < config.num_hidden_layers; ++block) {
      Part part{kind_of(config, block)};
      for (std::int64_t b = 0; b < full_.num_hidden_layers; ++b) part.count += kind_of(full_, b) == part.kind;
      HADAL_RETURN_IF_ERROR(time_layer(state, block, part));
      row.parts.push_back(std::move(part));
    }
    row.parts.push_back(time_head());
    // What the cut model's state has taken, for the layers of the whole one.
    const StateLayout& layout = model_.state_layout(format_);
    row.kv_bytes = static_cast<double>(state.resident_bytes()) / static_cast<double>(layout.bytes(context)) *
                   static_cast<double>(full_layout_.bytes(context));
    row.planned_flops = planned_(RowBytes::published(full_), {context - 1, 1, 1, 1}).flops();
    row.planned_kv_bytes = cache_cost(full_).bytes_at(context);
    return row;
  }

 private:
  template <class Run>
  Status measure(Part& part, Run&& run) {
    std::vector<double> seconds;
    for (std::int64_t i = 0; i <= steps_; ++i) {
      Profile profile;
      transformer_.backend().set_profile(&profile);
      const auto start = std::chrono::steady_clock::now();
      Status done = run();
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      transformer_.backend().set_profile(nullptr);
      HADAL_RETURN_IF_ERROR(std::move(done));
      part.flops = 0;
      for (const Profile::Entry& entry : profile.entries()) part.flops += entry.work.flops;
      if (i > 0) seconds.push_back(took);  // the first touches what no later one must
    }
    std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2),
                     seconds.end());
    part.seconds = seconds[seconds.size() / 2];
    return {};
  }
  Status time_layer(SequenceState& state, std::int64_t block, Part& part) {
    const Config& config = model_.config();
    std::vector<float> streams(static_cast<std::size_t>(config.hc_mult * config.hidden_size));
    return measure(part, [&] {
      for (float& x : streams) x = static_cast<float>(2 * random_.uniform(drawn_++) - 1);
      const std::int32_t token = 1;
      return transformer_.forward_block(state, {&token, 1}, block, streams);
    });
  }
  // Of the whole vocabulary, from a part of its rows.
  Part time_head() {
    const Linear& head = model_.weights().head;
    std::vector<float> x(static_cast<std::size_t>(head.in), 1.0F), y(static_cast<std::size_t>(head.out));
    Part part{"head", 1};
    const Status done = measure(part, [&]() -> Status {
      transformer_.backend().run(LinearParams{1, x.data(), &head, 1, InputRounding::none, y.data()});
      return {};
    });
    const double whole = static_cast<double>(full_.vocab_size) / static_cast<double>(head.out);
    if (done) part.seconds *= whole, part.flops *= whole;
    return part;
  }

  const Config& full_;
  StateLayout full_layout_;
  const Model& model_;
  Transformer& transformer_;
  StateFormat format_;
  std::int64_t steps_;
  CostModel planned_;
  Philox random_{1, 0};
  std::uint64_t drawn_ = 0;
};

Result<std::vector<CompareRow>> measure_preset(const std::string& preset, const CompareRequest& request,
                                               Backend& backend, ThreadPool& pool) {
  HADAL_ASSIGN_OR_RETURN(const Config full, preset_config(preset));
  const Config cut = layers_of_each_kind(full, kExperts, kVocabulary);
  notice(fmt::format("{}: drawing {} layers", preset, cut.num_hidden_layers));
  HADAL_ASSIGN_OR_RETURN(Buffer<std::byte> image,
                         init_checkpoint_bytes(cut, 1, StorageFormat::published, pool));
  HADAL_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::from_bytes(std::move(image), "random weights"));
  HADAL_ASSIGN_OR_RETURN(const Model model, Model::bind(cut, std::move(checkpoint)));
  Transformer transformer(model, backend, request.numerics);
  const StateFormat format = quantises_rows(request.numerics) ? StateFormat::compact : StateFormat::f32;
  Comparison comparison(full, model, transformer, format, request.steps);
  std::vector<CompareRow> rows;
  for (const std::int64_t context : request.contexts) {
    HADAL_ASSIGN_OR_RETURN(CompareRow row, comparison.row(std::max<std::int64_t>(2, context)));
    rows.push_back(std::move(row));
  }
  return rows;
}

Json as_json(const std::string& preset, const CompareRow& row, const CompareRow& base) {
  Json parts = Json::array();
  for (const Part& p : row.parts)
    parts.push_back({{"kind", p.kind}, {"count", p.count}, {"seconds", p.seconds}, {"flops", p.flops}});
  return {{"model", preset},
          {"context", row.context},
          {"seconds", row.seconds()},
          {"tokens_per_s", 1 / row.seconds()},
          {"flops", row.flops()},
          {"planned_flops", row.planned_flops},
          {"kv_bytes", row.kv_bytes},
          {"planned_kv_bytes", row.planned_kv_bytes},
          {"time_ratio", row.seconds() / base.seconds()},
          {"flops_ratio", row.flops() / base.flops()},
          {"kv_ratio", row.kv_bytes / base.kv_bytes},
          {"layers", std::move(parts)}};
}

std::string as_text(const std::string& preset, const CompareRow& row, const CompareRow& base) {
  std::string text =
      fmt::format("{:<6} {:>8} {:>10.1f} {:>7.1f}% {:>10.1f} {:>7.1f}% {:>10.3f} {:>7.2f}%   ", preset,
                  row.context, 1e3 * row.seconds(), 100 * row.seconds() / base.seconds(), row.flops() / 1e9,
                  100 * row.flops() / base.flops(), row.kv_bytes / 1e9, 100 * row.kv_bytes / base.kv_bytes);
  for (std::size_t i = 0; i < row.parts.size(); ++i) {
    const Part& p = row.parts[i];
    fmt::format_to(std::back_inserter(text), "{}{} x {:.2f} ms {}", i > 0 ? " + " : "", p.count,
                   1e3 * p.seconds, p.kind);
  }
  return text + "\n";
}

}  // namespace

Status compare_models(const CompareRequest& request, Backend& backend, ThreadPool& pool) {
  HADAL_ASSIGN_OR_RETURN(const std::vector<CompareRow> base,
                         measure_preset(request.baseline, request, backend, pool));
  Json out = {{"isa", backend.name()},
              {"threads", pool.size()},
              {"numerics", to_string(request.numerics)},
              {"rows", Json::array()}};
  std::string text = fmt::format(
      "one decoded token, {} on {} threads, {} numerics; ratios to {}\n"
      "{:<6} {:>8} {:>10} {:>8} {:>10} {:>8} {:>10} {:>8}   layers\n",
      backend.name(), pool.size(), to_string(request.numerics), request.baseline, "model", "context", "ms",
      "", "GFLOP", "", "KV GB", "");
  const auto add = [&](const std::string& preset, const std::vector<CompareRow>& rows) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      out["rows"].push_back(as_json(preset, rows[i], base[i]));
      text += as_text(preset, rows[i], base[i]);
    }
  };
  add(request.baseline, base);
  for (const std::string& preset : request.presets) {
    HADAL_ASSIGN_OR_RETURN(const std::vector<CompareRow> rows,
                           measure_preset(preset, request, backend, pool));
    add(preset, rows);
  }
  std::printf("%s", request.json ? (out.dump(2) + "\n").c_str() : text.c_str());
  return {};
}

}  // namespace hadal::cli
