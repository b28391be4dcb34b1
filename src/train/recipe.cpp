#include "train/recipe.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kMost = std::int64_t{1} << 40;
constexpr double kMostReal = std::numeric_limits<double>::max();

// The spellings of an enumeration.
template <class Enum>
using Names = std::span<const std::pair<std::string_view, Enum>>;
template <class Enum, std::size_t kN>
using Spellings = std::array<std::pair<std::string_view, Enum>, kN>;
constexpr Spellings<StageAttention, 3> kAttentions = {{{"dense", StageAttention::dense},
                                                       {"indexer", StageAttention::indexer},
                                                       {"sparse", StageAttention::sparse}}};
constexpr Spellings<Precision, 2> kPrecisions = {{{"f32", Precision::f32}, {"bf16", Precision::bf16}}};
constexpr Spellings<OptimizerKind, 2> kOptimizers = {
    {{"muon", OptimizerKind::muon}, {"adamw", OptimizerKind::adamw}}};
constexpr Spellings<Anticipation, 3> kAnticipations = {{{"off", Anticipation::off},
                                                        {"after_spike", Anticipation::after_spike},
                                                        {"always", Anticipation::always}}};
constexpr Spellings<CombStart, 2> kCombStarts = {
    {{"identity", CombStart::identity}, {"uniform", CombStart::uniform}}};

template <class Enum, std::size_t kN>
std::string_view name_of(Enum value, const Spellings<Enum, kN>& names) {
  return std::find_if(names.begin(), names.end(), [&](const auto& entry) { return entry.second == value; })
      ->first;
}

std::string excerpt(const Json& value) {
  if (value.is_array()) return "an array";
  if (value.is_object()) return "an object";
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

// The first thing that is wrong with the recipe; shared by all its parts.
using Problem = std::string;

// One object of the recipe: fields are taken out by name, and what is left over at the end is unknown.
class Fields {
 public:
  Fields(const Json& json, std::string path, Problem& problem)
      : json_(json), path_(std::move(path)), problem_(problem) {
    if (!json.is_object()) wrong_here(fmt::format("is {}, expected an object", excerpt(json)));
  }
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;
  ~Fields() {
    if (!json_.is_object()) return;
    for (const auto& [key, value] : json_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end())
        wrong(fmt::format("{} is not a field; allowed: {}", at(key), fmt::join(known_, ", ")));
    }
    // Last, since what is missing may be there under a name that is not quite its own.
    if (!missing_.empty()) wrong(fmt::format("{} is missing", at(missing_)));
  }

  const Json* find(const char* key) {
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.emplace_back(key);
    if (!json_.is_object()) return nullptr;
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  const Json* require(const char* key) {
    const Json* value = find(key);
    if (value == nullptr && missing_.empty()) missing_ = key;
    return value;
  }
  std::string at(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }
  void wrong(std::string text) {
    if (problem_.empty()) problem_ = std::move(text);
  }
  Problem& problem() { return problem_; }

  void integer(const char* key, std::int64_t& out, std::int64_t low, std::int64_t high = kMost) {
    if (const Json* value = find(key)) out = integer_value(key, *value, low, high, out);
  }
  void required_integer(const char* key, std::int64_t& out, std::int64_t low) {
    if (const Json* value = require(key)) out = integer_value(key, *value, low, kMost, out);
  }
  void real(const char* key, double& out, double low, double high = kMostReal) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high)) {
      const std::string range = high == kMostReal ? fmt::format("a number of at least {}", low)
                                                  : fmt::format("a number from {} to {}", low, high);
      return wrong(fmt::format("{} is {}, expected {}", at(key), excerpt(*value), range));
    }
    out = value->get<double>();
  }
  void boolean(const char* key, bool& out) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_boolean())
      return wrong(fmt::format("{} is {}, expected true or false", at(key), excerpt(*value)));
    out = value->get<bool>();
  }
  template <class Enum>
  void choice(const char* key, Enum& out, Names<std::type_identity_t<Enum>> names) {
    const Json* value = find(key);
    if (value == nullptr) return;
    for (const auto& [name, entry] : names) {
      if (*value == name) {
        out = entry;
        return;
      }
    }
    std::string allowed;
    for (const auto& [name, entry] : names)
      allowed += fmt::format("{}\"{}\"", allowed.empty() ? "" : ", ", name);
    wrong(fmt::format("{} is {}, expected one of {}", at(key), excerpt(*value), allowed));
  }
  void path(const char* key, fs::path& out, const fs::path& directory) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_string() || value->get_ref<const std::string&>().empty())
      return wrong(fmt::format("{} is {}, expected a path", at(key), excerpt(*value)));
    out = fs::absolute(directory / value->get<std::string>()).lexically_normal();
  }
  // Calls read(Fields&) with the object at `key`, if there is one.
  template <class Read>
  void object(const char* key, Read&& read) {
    const Json* value = find(key);
    if (value == nullptr) return;
    Fields fields(*value, at(key), problem_);
    read(fields);
  }
  // Calls read(Fields&) for each object of the array at `key`, which must have one.
  template <class Read>
  void list(const char* key, Read&& read) {
    const Json* value = require(key);
    if (value == nullptr) return;
    if (!value->is_array() || value->empty())
      return wrong(
          fmt::format("{} is {}, expected an array of at least one object", at(key), excerpt(*value)));
    std::size_t i = 0;
    for (const Json& entry : *value) {
      Fields fields(entry, fmt::format("{}[{}]", at(key), i++), problem_);
      read(fields);
    }
  }

 private:
  void wrong_here(const std::string& what) {
    wrong(fmt::format("{} {}", path_.empty() ? "the recipe" : path_, what));
  }
  std::int64_t integer_value(const char* key, const Json& value, std::int64_t low, std::int64_t high,
                             std::int64_t old) {
    if (!value.is_number_integer() || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
      wrong(fmt::format(
          "{} is {}, expected an integer {}", at(key), excerpt(value),
          high == kMost ? fmt::format("of at least {}", low) : fmt::format("from {} to {}", low, high)));
      return old;
    }
    return value.get<std::int64_t>();
  }

  const Json& json_;
  std::string path_;
  Problem& problem_;
  std::vector<std::string> known_;
  std::string missing_;  // the first that was required
};

void read_model(Fields& fields, const fs::path& directory, TrainingRecipe& recipe) {
  const Json* preset = fields.find("preset");
  const Json* config = fields.find("config");
  fs::path file;
  fields.path("config_file", file, directory);
  fields.path("checkpoint", recipe.checkpoint, directory);
  std::int64_t layers = 0, experts = 0;
  fields.integer("layers", layers, 1);
  fields.integer("experts", experts, 1);
  const int sources = (preset != nullptr) + (config != nullptr) + !file.empty() + !recipe.checkpoint.empty();
  if (sources != 1) {
    return fields.wrong(
        fmt::format("{} has {} of preset, config, config_file and checkpoint, expected exactly one",
                    fields.at("").substr(0, 5), sources));
  }
  if (!recipe.checkpoint.empty() && (layers != 0 || experts != 0))
    return fields.wrong("model.layers and model.experts cut a preset or a config, not a model.checkpoint");
  Result<Config> parsed = fail(ErrorCode::invalid_argument, "");
  std::string where = "model.config";
  if (preset != nullptr) {
    where = "model.preset";
    parsed = preset_config(preset->is_string() ? preset->get<std::string>() : excerpt(*preset));
  } else if (config != nullptr) {
    parsed = parse_config(config->dump());
  } else if (!file.empty()) {
    where = "model.config_file";
    auto text = read_file(file, std::size_t{1} << 20);
    parsed = text ? parse_config(*text) : Result<Config>(tl::unexpected(std::move(text).error()));
  } else {
    where = "model.checkpoint";
    parsed = load_config(recipe.checkpoint);
  }
  if (parsed) parsed = cut_config(std::move(*parsed), layers, experts);
  if (!parsed) return fields.wrong(fmt::format("{}: {}", where, parsed.error().message()));
  recipe.config = std::move(*parsed);
}

void read_data(Fields& fields, const fs::path& directory, TrainingRecipe& recipe) {
  fields.list("train", [&](Fields& source) {
    DataSource& entry = recipe.data.emplace_back();
    source.path("path", entry.path, directory);
    if (entry.path.empty()) source.wrong(fmt::format("{} is missing", source.at("path")));
    source.real("weight", entry.weight, 1e-6, 1e6);
  });
  fields.path("validation", recipe.validation, directory);
}

// null: no YaRN; absent: the config's.
void read_stage(Fields& fields, const Json& json, TrainingRecipe& recipe) {
  RecipeStage& stage = recipe.stages.emplace_back();
  stage.yarn = recipe.config.rope_scaling;
  fields.required_integer("from_step", stage.from_step, 0);
  fields.required_integer("length", stage.length, 1);
  fields.choice("attention", stage.attention, kAttentions);
  fields.real("learning_rate", stage.learning_rate, 0, 1);
  if (json.is_object() && json.contains("yarn") && json["yarn"].is_null()) stage.yarn.reset();
  fields.object("yarn", [&](Fields& yarn) {
    YarnScaling scaling = stage.yarn.value_or(YarnScaling{});
    yarn.real("factor", scaling.factor, 1, 1e6);
    yarn.integer("original_max_position_embeddings", scaling.original_max_position_embeddings, 1);
    yarn.real("beta_fast", scaling.beta_fast, 0);
    yarn.real("beta_slow", scaling.beta_slow, 0);
    stage.yarn = scaling;
  });
}

// What no single field shows.
std::string contradiction(const TrainingRecipe& r) {
  const auto ascending = [](const auto& list, const char* name) -> std::string {
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i == 0 && list[0].from_step != 0)
        return fmt::format("{}[0].from_step is {}, expected 0", name, list[0].from_step);
      if (i > 0 && list[i].from_step <= list[i - 1].from_step) {
        return fmt::format("{}[{}].from_step is {}, expected more than the {} before it", name, i,
                           list[i].from_step, list[i - 1].from_step);
      }
    }
    return {};
  };
  if (std::string text = ascending(r.batch, "batch"); !text.empty()) return text;
  if (std::string text = ascending(r.stages, "stages"); !text.empty()) return text;
  const bool csa = [&] {
    for (std::int64_t b = 0; b < r.config.num_blocks(); ++b)
      if (r.config.attention_kind(b) == AttentionKind::csa) return true;
    return false;
  }();
  for (std::size_t i = 0; i < r.stages.size(); ++i) {
    const RecipeStage& stage = r.stages[i];
    if (stage.from_step >= r.steps)
      return fmt::format("stages[{}].from_step is {}, but the run has {} steps", i, stage.from_step, r.steps);
    if (stage.length > r.config.max_position_embeddings) {
      return fmt::format("stages[{}].length is {}, more than the model's max_position_embeddings of {}", i,
                         stage.length, r.config.max_position_embeddings);
    }
    if (stage.attention == StageAttention::indexer && !csa)
      return fmt::format(
          "stages[{}].attention is \"indexer\", but no layer of the model has one (compress ratio 4)", i);
    if (stage.learning_rate != 0 && stage.attention != StageAttention::indexer) {
      return fmt::format(
          "stages[{}].learning_rate is for \"indexer\" stages; the others follow learning_rate", i);
    }
    const std::int64_t end = i + 1 < r.stages.size() ? r.stages[i + 1].from_step : r.steps;
    for (std::size_t b = 0; b < r.batch.size(); ++b) {
      const bool over = r.batch[b].from_step >= end ||
                        (b + 1 < r.batch.size() && r.batch[b + 1].from_step <= stage.from_step);
      if (!over && r.batch[b].tokens % stage.length != 0) {
        return fmt::format("batch[{}].tokens is {}, not a whole number of sequences of stages[{}].length, {}",
                           b, r.batch[b].tokens, i, stage.length);
      }
    }
    if (r.micro_batch_tokens != 0 && r.micro_batch_tokens < stage.length) {
      return fmt::format("micro_batch_tokens is {}, less than one sequence of stages[{}].length, {}",
                         r.micro_batch_tokens, i, stage.length);
    }
  }
  if (r.learning_rate.final > r.learning_rate.peak) {
    return fmt::format("learning_rate.final is {}, more than learning_rate.peak, {}", r.learning_rate.final,
                       r.learning_rate.peak);
  }
  if (r.learning_rate.warmup_steps > r.learning_rate.decay_from || r.learning_rate.decay_from > r.steps) {
    return fmt::format(
        "learning_rate: warm-up of {} steps, decay from step {}, {} steps in all; expected warmup_steps "
        "<= decay_from <= steps",
        r.learning_rate.warmup_steps, r.learning_rate.decay_from, r.steps);
  }
  if (r.anticipatory_routing.mode == Anticipation::after_spike && r.spike.rise == 0)
    return "anticipatory_routing.mode is \"after_spike\", but spike.rise is 0: no spike is ever detected";
  if (r.evaluation.every != 0 && r.validation.empty())
    return "evaluation.every is set, but data.validation names nothing to evaluate on";
  if (r.fp4_from_step && *r.fp4_from_step >= r.steps)
    return fmt::format("fp4_from_step is {}, but the run has {} steps", *r.fp4_from_step, r.steps);
  if (r.fp4_from_step && (r.config.hidden_size % 32 != 0 || r.config.moe_intermediate_size % 32 != 0)) {
    return fmt::format(
        "fp4_from_step: FP4 has one scale for 32 numbers, but hidden_size is {} and moe_intermediate_size {}",
        r.config.hidden_size, r.config.moe_intermediate_size);
  }
  return {};
}

}  // namespace

std::string_view to_string(StageAttention attention) {
  return name_of(attention, kAttentions);
}

Result<TrainingRecipe> parse_recipe(std::string_view text, const fs::path& directory) {
  Json json;
  try {
    json = Json::parse(text, nullptr, true, true);
  } catch (const Json::exception& error) {
    return fail(ErrorCode::corrupt, fmt::format("not JSON: {}", error.what()));
  }
  TrainingRecipe recipe;
  Problem problem;
  {
    Fields fields(json, "", problem);
    if (const Json* name = fields.require("name")) {
      if (name->is_string()) recipe.name = name->get<std::string>();
      if (recipe.name.empty() || recipe.name.find('/') != std::string::npos)
        fields.wrong(fmt::format("name is {}, expected a name without slashes", excerpt(*name)));
    }
    if (fields.require("model") != nullptr)
      fields.object("model", [&](Fields& f) { read_model(f, directory, recipe); });
    fields.path("tokenizer", recipe.tokenizer, directory);
    if (fields.require("data") != nullptr)
      fields.object("data", [&](Fields& f) { read_data(f, directory, recipe); });
    std::int64_t seed = 0;
    fields.integer("seed", seed, 0);
    recipe.seed = static_cast<std::uint64_t>(seed);
    fields.choice("precision", recipe.precision, kPrecisions);
    fields.required_integer("steps", recipe.steps, 1);
    fields.list("batch", [&](Fields& f) {
      BatchRamp& ramp = recipe.batch.emplace_back();
      f.required_integer("from_step", ramp.from_step, 0);
      f.required_integer("tokens", ramp.tokens, 1);
    });
    fields.integer("micro_batch_tokens", recipe.micro_batch_tokens, 1);
    fields.integer("gradient_parts", recipe.gradient_parts, 1, 4096);
    fields.boolean("expert_parallel", recipe.expert_parallel);
    std::size_t stage = 0;
    fields.list("stages", [&](Fields& f) { read_stage(f, json["stages"][stage++], recipe); });
    recipe.learning_rate.warmup_steps =
        std::min<std::int64_t>(recipe.learning_rate.warmup_steps, recipe.steps / 10);
    recipe.learning_rate.decay_from = recipe.steps;
    fields.object("learning_rate", [&](Fields& f) {
      f.real("peak", recipe.learning_rate.peak, 0, 1);
      recipe.learning_rate.final = recipe.learning_rate.peak / 10;
      f.real("final", recipe.learning_rate.final, 0, 1);
      f.integer("warmup_steps", recipe.learning_rate.warmup_steps, 0);
      f.integer("decay_from", recipe.learning_rate.decay_from, 0);
    });
    fields.object("loss", [&](Fields& f) {
      f.real("mtp", recipe.loss.mtp, 0);
      f.real("mtp_decay", recipe.loss.mtp_decay, 0);
      f.real("balance", recipe.loss.balance, 0);
      f.real("index", recipe.loss.index, 0);
    });
    fields.real("bias_update_speed", recipe.bias_update_speed, 0);
    fields.object("optimizer", [&](Fields& f) {
      auto& o = recipe.optimizer;
      f.choice("kind", o.kind, kOptimizers);
      for (const char* key : {"momentum", "gamma", "newton_schulz"}) {
        if (o.kind == OptimizerKind::adamw && f.find(key) != nullptr)
          f.wrong(fmt::format("optimizer.{} is Muon's, but optimizer.kind is \"adamw\"", key));
      }
      f.real("momentum", o.momentum, 0, 1);
      f.real("gamma", o.gamma, 0);
      f.real("beta1", o.beta1, 0, 0.999999);
      f.real("beta2", o.beta2, 0, 0.999999);
      f.real("epsilon", o.epsilon, 0);
      f.real("weight_decay", o.weight_decay, 0);
      f.real("clip_norm", o.clip_norm, 0);
      f.choice("newton_schulz", o.newton_schulz, kPrecisions);
    });
    fields.object("initial", [&](Fields& f) {
      if (!recipe.checkpoint.empty())
        f.wrong("initial is for random weights, but model.checkpoint gives others");
      f.real("embedding", recipe.initial.embedding, 0);
      f.real("head", recipe.initial.head, 0);
      f.real("output", recipe.initial.output, 0);
      f.choice("comb", recipe.initial.comb, kCombStarts);
    });
    std::int64_t fp4 = -1;
    fields.integer("fp4_from_step", fp4, 0);
    if (fp4 >= 0) recipe.fp4_from_step = fp4;
    fields.object("anticipatory_routing", [&](Fields& f) {
      f.choice("mode", recipe.anticipatory_routing.mode, kAnticipations);
      f.integer("delay", recipe.anticipatory_routing.delay, 1, 1000);
      f.integer("steps", recipe.anticipatory_routing.steps, 1);
    });
    fields.object("spike", [&](Fields& f) {
      f.real("rise", recipe.spike.rise, 0);
      f.integer("window", recipe.spike.window, 1, 10000);
      f.integer("rollbacks", recipe.spike.rollbacks, 0);
    });
    fields.object("snapshot", [&](Fields& f) {
      f.integer("every", recipe.snapshot.every, 1);
      f.integer("keep", recipe.snapshot.keep, 1);
    });
    fields.object("evaluation", [&](Fields& f) {
      f.integer("every", recipe.evaluation.every, 0);
      f.integer("windows", recipe.evaluation.windows, 1);
    });
  }
  if (problem.empty()) problem = contradiction(recipe);
  if (!problem.empty()) return fail(ErrorCode::invalid_argument, problem);
  recipe.config.rope_scaling = recipe.stages.back().yarn;
  return recipe;
}

Result<TrainingRecipe> load_recipe(const fs::path& path) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(path, std::size_t{1} << 20));
  auto recipe = parse_recipe(text, fs::absolute(path).parent_path());
  if (!recipe) return tl::unexpected(std::move(recipe).error().with_context(path.string()));
  return recipe;
}

std::string TrainingRecipe::to_json() const {
  const auto precision_name = [](Precision p) { return name_of(p, kPrecisions); };
  Json json;
  json["name"] = name;
  if (checkpoint.empty()) {
    json["model"]["config"] = Json::parse(config_to_json(config));
  } else {
    json["model"]["checkpoint"] = checkpoint.string();
  }
  if (!tokenizer.empty()) json["tokenizer"] = tokenizer.string();
  for (const DataSource& source : data)
    json["data"]["train"].push_back({{"path", source.path.string()}, {"weight", source.weight}});
  if (!validation.empty()) json["data"]["validation"] = validation.string();
  json["seed"] = seed;
  json["precision"] = precision_name(precision);
  json["steps"] = steps;
  for (const BatchRamp& ramp : batch)
    json["batch"].push_back({{"from_step", ramp.from_step}, {"tokens", ramp.tokens}});
  if (micro_batch_tokens != 0) json["micro_batch_tokens"] = micro_batch_tokens;
  if (gradient_parts != 1) json["gradient_parts"] = gradient_parts;
  if (expert_parallel) json["expert_parallel"] = true;
  for (const RecipeStage& stage : stages) {
    Json entry = {
        {"from_step", stage.from_step}, {"length", stage.length}, {"attention", to_string(stage.attention)}};
    if (stage.learning_rate != 0) entry["learning_rate"] = stage.learning_rate;
    if (stage.yarn) {
      entry["yarn"] = {{"factor", stage.yarn->factor},
                       {"original_max_position_embeddings", stage.yarn->original_max_position_embeddings},
                       {"beta_fast", stage.yarn->beta_fast},
                       {"beta_slow", stage.yarn->beta_slow}};
    } else {
      entry["yarn"] = nullptr;
    }
    json["stages"].push_back(std::move(entry));
  }
  json["learning_rate"] = {{"peak", learning_rate.peak},
                           {"final", learning_rate.final},
                           {"warmup_steps", learning_rate.warmup_steps},
                           {"decay_from", learning_rate.decay_from}};
  json["loss"] = {
      {"mtp", loss.mtp}, {"mtp_decay", loss.mtp_decay}, {"balance", loss.balance}, {"index", loss.index}};
  json["bias_update_speed"] = bias_update_speed;
  Json& o = json["optimizer"];
  o["kind"] = name_of(optimizer.kind, kOptimizers);
  if (optimizer.kind == OptimizerKind::muon) {
    o["momentum"] = optimizer.momentum;
    o["gamma"] = optimizer.gamma;
    o["newton_schulz"] = precision_name(optimizer.newton_schulz);
  }
  o["beta1"] = optimizer.beta1;
  o["beta2"] = optimizer.beta2;
  o["epsilon"] = optimizer.epsilon;
  o["weight_decay"] = optimizer.weight_decay;
  o["clip_norm"] = optimizer.clip_norm;
  if (checkpoint.empty()) {
    json["initial"] = {{"embedding", initial.embedding},
                       {"head", initial.head},
                       {"output", initial.output},
                       {"comb", name_of(initial.comb, kCombStarts)}};
  }
  if (fp4_from_step) json["fp4_from_step"] = *fp4_from_step;
  json["anticipatory_routing"] = {{"mode", name_of(anticipatory_routing.mode, kAnticipations)},
                                  {"delay", anticipatory_routing.delay},
                                  {"steps", anticipatory_routing.steps}};
  json["spike"] = {{"rise", spike.rise}, {"window", spike.window}, {"rollbacks", spike.rollbacks}};
  json["snapshot"] = {{"every", snapshot.every}, {"keep", snapshot.keep}};
  json["evaluation"] = {{"every", evaluation.every}, {"windows", evaluation.windows}};
  return json.dump(1) + "\n";
}

}  // namespace hadal
