// hadal inspect: what a model consists of and what it costs to hold, from its config and its files.
#include <algorithm>
#include <array>
#include <cstdint>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/readable.h"
#include "cli/command.h"
#include "cli/text_io.h"
#include "model/inventory.h"
#include "model/model.h"

namespace hadal::cli {
namespace {

using Json = nlohmann::ordered_json;

struct InspectArguments {
  std::string model, preset;
  bool json = false, verify = false;
};

struct Memory {
  std::int64_t total = 0, available = 0;  // bytes
};

// What Linux says; nothing elsewhere.
std::optional<Memory> machine_memory() {
  Memory memory;
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::int64_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemTotal:") memory.total = kib * 1024;
    if (key == "MemAvailable:") memory.available = kib * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  if (memory.total == 0) return std::nullopt;
  return memory;
}

// Everything there is to say about one model; what is not known of it stays empty.
struct Report {
  std::string name;
  std::optional<Config> config;
  std::optional<Inventory> inventory;  // of the files, or of a preset
  std::optional<Inventory> expected;   // by the config, where there are files
  std::vector<std::string> notices;
  std::optional<Error> problem;  // why the files are no such model
  bool verified = false;         // no weight in them is infinite or NaN
  ParameterCount parameters;
  CacheCost cache;
  std::int64_t context = 0;
  std::optional<StateLayout> state;  // hadal's own, in the format that the model gets by default
};

Report describe(std::string name, const Config& config) {
  Report report;
  report.name = std::move(name);
  report.config = config;
  report.parameters = count_parameters(config);
  report.cache = cache_cost(config);
  report.context = config.max_position_embeddings;
  return report;
}

Result<Report> inspect_preset(const std::string& preset) {
  HADAL_ASSIGN_OR_RETURN(const Config config, preset_config(preset));
  Report report = describe(preset, config);
  report.inventory = expected_inventory(config, StorageFormat::published);
  report.state.emplace(config, StateFormat::compact);
  return report;
}

Result<Report> inspect_directory(const std::string& directory, bool verify) {
  HADAL_ASSIGN_OR_RETURN(const Config config, load_config(directory));
  HADAL_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(directory));
  Report report = describe(directory, config);
  report.inventory = checkpoint_inventory(checkpoint);
  report.expected = expected_inventory(config, StorageFormat::published);
  // The loader itself says whether the files are the model that the config describes.
  ThreadPool pool(verify ? 0 : 1);
  const WeightCheck check{verify ? WeightCheck::Depth::all : WeightCheck::Depth::none, &pool};
  auto model = Model::bind(
      config, std::move(checkpoint), [&](std::string_view notice) { report.notices.emplace_back(notice); },
      {}, check);
  report.verified = verify && model.has_value();
  const bool quantised = model && model->quantised();
  report.state.emplace(config, quantised ? StateFormat::compact : StateFormat::f32);
  if (!model) report.problem = std::move(model).error().with_context(directory);
  return report;
}

// 3514.25, but 48068
Json number(double value) {
  const auto whole = static_cast<std::int64_t>(value);
  return static_cast<double>(whole) == value ? Json(whole) : Json(value);
}

double page_bytes_per_token(const StateLayout& layout) {
  return static_cast<double>(layout.page_bytes) / static_cast<double>(kPageTokens);
}

// Tokens of one sequence that fit beside the weights, by hadal's own state; none when the weights do not fit.
std::optional<std::int64_t> tokens_that_fit(const Report& report, const Memory& memory) {
  if (!report.state || !report.inventory || memory.available < report.inventory->bytes) return std::nullopt;
  const StateLayout& layout = *report.state;
  const std::int64_t left = memory.available - report.inventory->bytes - layout.fixed_bytes;
  if (left < 0 || layout.page_bytes == 0) return left < 0 ? 0 : report.context;
  const double tokens = static_cast<double>(left) / page_bytes_per_token(layout);
  return std::min(report.context, static_cast<std::int64_t>(tokens));
}

Json as_json(const Report& report) {
  Json out;
  out["model"] = report.name;
  out["tensors"] = nullptr;
  out["bytes"] = nullptr;
  out["dtypes"] = nullptr;
  if (report.inventory) {
    out["tensors"] = report.inventory->tensors;
    out["bytes"] = report.inventory->bytes;
    out["dtypes"] = Json::object();
    for (const auto& [dtype, entry] : report.inventory->dtypes)
      out["dtypes"][std::string(to_string(dtype))] = entry.tensors;
    out["dtype_bytes"] = Json::object();
    for (const auto& [dtype, entry] : report.inventory->dtypes)
      out["dtype_bytes"][std::string(to_string(dtype))] = entry.bytes;
  }
  out["parameters"] = report.parameters.total;
  out["active_parameters"] = report.parameters.active;
  if (report.config) out["mtp_parameters"] = report.parameters.mtp;
  out["kv_bytes_per_token"] = number(report.cache.bytes_per_token);
  out["state_bytes_per_sequence"] = report.cache.bytes_per_sequence;
  out["context"] = report.context;
  if (report.config) {
    const StateLayout& layout = *report.state;
    out["hadal_state"] = to_string(layout.format);
    out["hadal_bytes_per_token"] = number(page_bytes_per_token(layout));
    out["hadal_bytes_per_sequence"] = layout.fixed_bytes;
    out["config"] = Json::parse(config_to_json(*report.config));
  }
  if (const auto memory = machine_memory()) {
    out["memory_bytes"] = memory->total;
    out["memory_available_bytes"] = memory->available;
    if (report.inventory) out["weights_fit"] = report.inventory->bytes <= memory->available;
    if (const auto tokens = tokens_that_fit(report, *memory)) out["tokens_that_fit"] = *tokens;
  }
  if (report.expected) {
    out["expected_tensors"] = report.expected->tensors;
    out["expected_bytes"] = report.expected->bytes;
    out["notices"] = report.notices;
    out["verified"] = report.verified;
    out["problem"] = report.problem ? Json(report.problem->message()) : Json(nullptr);
  }
  return out;
}

// As parameters are counted: "284.33 B", "3.36 M"
std::string billions(std::int64_t count) {
  const auto value = static_cast<double>(count);
  return value >= 1e9 ? fmt::format("{:.2f} B", value * 1e-9) : fmt::format("{:.2f} M", value * 1e-6);
}

std::string kinds_as_text(const Config& config) {
  if (config.v32) {
    return fmt::format("{} layers, every token a row; top {} of the indexer; context {}",
                       config.num_hidden_layers, config.index_topk, config.max_position_embeddings);
  }
  std::array<std::int64_t, 3> counts{};
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    ++counts.at(static_cast<std::size_t>(config.attention_kind(layer)));
  return fmt::format("{} sliding, {} CSA, {} HCA; window {}, top {} of the indexer; context {}", counts[0],
                     counts[1], counts[2], config.sliding_window, config.index_topk,
                     config.max_position_embeddings);
}

std::string as_text(const Report& report) {
  std::string text;
  const auto line = [&](std::string_view label, const std::string& value) {
    fmt::format_to(std::back_inserter(text), "{:<11} {}\n", label, value);
  };
  line("model", report.name);
  if (const auto& c = report.config) {
    line("shape",
         fmt::format("{} layers + {} MTP, hidden {}, {} heads of {}, {} residual streams, vocabulary {}",
                     c->num_hidden_layers, c->num_nextn_predict_layers, c->hidden_size,
                     c->num_attention_heads, c->head_dim, c->hc_mult, c->vocab_size));
    line("experts",
         fmt::format("{} of width {}, {} per token + 1 shared; {} hash-routed layers", c->n_routed_experts,
                     c->moe_intermediate_size, c->num_experts_per_tok, c->num_hash_layers));
    line("attention", kinds_as_text(*c));
  }
  if (report.inventory) {
    line("tensors", fmt::format("{}", report.inventory->tensors));
    line("bytes", fmt::format("{} ({}B)", report.inventory->bytes, readable(report.inventory->bytes)));
    for (const auto& [dtype, entry] : report.inventory->dtypes) {
      line("", fmt::format("{:<8} {:>7} tensors {:>16} bytes", to_string(dtype), entry.tensors, entry.bytes));
    }
  }
  if (report.expected && (report.expected->tensors != report.inventory->tensors ||
                          report.expected->bytes != report.inventory->bytes)) {
    line("by config", fmt::format("{} tensors, {} bytes", report.expected->tensors, report.expected->bytes));
  }
  line("parameters", fmt::format("{} ({}), {} ({}) active per token", report.parameters.total,
                                 billions(report.parameters.total), report.parameters.active,
                                 billions(report.parameters.active)));
  if (report.parameters.mtp > 0) {
    line("", fmt::format("{} ({}) more in the MTP blocks", report.parameters.mtp,
                         billions(report.parameters.mtp)));
  }
  line("KV cache", fmt::format("{} bytes per token in the published formats, {}B at {} tokens",
                               report.cache.bytes_per_token, readable(report.cache.bytes_at(report.context)),
                               report.context));
  if (report.cache.bytes_per_sequence > 0) {
    line("", fmt::format("and {} bytes per sequence whatever its length (the windows)",
                         report.cache.bytes_per_sequence));
  }
  const auto memory = machine_memory();
  if (report.config) {
    const StateLayout& layout = *report.state;
    line("in hadal",
         fmt::format("{} bytes per token and {}B per sequence ({} state; windows, unfinished "
                     "blocks, MTP)",
                     page_bytes_per_token(layout), readable(layout.fixed_bytes), to_string(layout.format)));
  }
  if (memory) {
    line("memory", fmt::format("{}B in this machine, {}B available", readable(memory->total),
                               readable(memory->available)));
  }
  if (memory && report.inventory) {
    if (const auto tokens = tokens_that_fit(report, *memory)) {
      line("fits", fmt::format("the weights, and beside them one sequence of {} tokens", *tokens));
    } else {
      line("fits",
           fmt::format("not the weights: they are mapped, and what does not fit is read from the disk "
                       "again and again; {}B more memory would hold them",
                       readable(report.inventory->bytes - memory->available)));
    }
  }
  if (report.verified) line("verified", "no weight is infinite or NaN");
  for (const std::string& notice : report.notices) line("notice", notice);
  return text;
}

Status inspect(const InspectArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const Report report, arguments.preset.empty()
                                                  ? inspect_directory(arguments.model, arguments.verify)
                                                  : inspect_preset(arguments.preset));
  HADAL_RETURN_IF_ERROR(write_stdout(arguments.json ? as_json(report).dump(2) + "\n" : as_text(report)));
  if (report.problem) return tl::unexpected(*report.problem);
  return {};
}

}  // namespace

void register_inspect(CLI::App& app, Outcome& outcome) {
  const auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = app.add_subcommand("inspect", "Say what a model consists of and what it costs to hold");
  CLI::Option_group* source = command->add_option_group("what");
  source->add_option("MODEL", arguments->model, "A model directory");
  source
      ->add_option("--preset", arguments->preset, "A published model, without its files: flash, pro or v3.2")
      ->check(CLI::IsMember({"flash", "pro", "v3.2"}));
  source->require_option(1);
  command
      ->add_flag("--verify", arguments->verify,
                 "Also read every weight, and name one that is infinite or NaN")
      ->excludes("--preset");
  command->add_flag("--json", arguments->json, "One JSON object on stdout");
  command->footer("Examples: hadal inspect --preset flash\n          hadal inspect --json DeepSeek-V4-Flash");
  command->callback([arguments, &outcome] {
    const Status status = inspect(*arguments);
    outcome.exit_code = status ? kDone : report(status.error());
  });
}

}  // namespace hadal::cli
