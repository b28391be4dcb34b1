// What a training run is: the file recipes/NAME.json with every field checked (docs/training.md lists them).
// An unknown or contradictory field is an error that names its path and what is allowed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "model/config.h"
#include "train/data.h"
#include "train/matmul.h"

namespace hadal {

enum class StageAttention : std::uint8_t {
  dense,    // CSA layers attend to all visible compressed rows; the indexer is not trained
  indexer,  // the indexer's warm-up: it alone is trained, attention stays dense
  sparse,   // CSA layers attend to the rows that the indexer selects; everything is trained
};
std::string_view to_string(StageAttention attention);

struct RecipeStage {
  std::int64_t from_step = 0;
  std::int64_t length = 0;  // tokens of a sequence
  StageAttention attention = StageAttention::dense;
  double learning_rate = 0;         // constant, in the indexer's warm-up; elsewhere 0: the schedule
  std::optional<YarnScaling> yarn;  // of the stage's model
};

struct BatchRamp {
  std::int64_t from_step = 0;
  std::int64_t tokens = 0;  // of a step
};

enum class OptimizerKind : std::uint8_t { muon, adamw };
enum class Anticipation : std::uint8_t { off, after_spike, always };
enum class CombStart : std::uint8_t { identity, uniform };

struct TrainingRecipe {
  std::string name;
  Config config;                     // with the YaRN of the last stage
  std::filesystem::path checkpoint;  // start from these weights; empty: from random ones
  std::filesystem::path tokenizer;   // copied into exports; may be empty
  std::vector<DataSource> data;
  std::filesystem::path validation;  // may be empty: no evaluation
  std::uint64_t seed = 0;
  Precision precision = Precision::bf16;
  std::int64_t steps = 0;

  std::vector<BatchRamp> batch;
  std::int64_t micro_batch_tokens = 0;  // of one forward and backward; 0: the whole step
  // A step's gradient is the sum of so many parts: this many processes give the bits of one (batch_runner.h).
  std::int64_t gradient_parts = 1;
  bool expert_parallel = false;  // routed experts are dealt out to the processes (expert_placement.h)
  std::vector<RecipeStage> stages;

  struct {
    double peak = 2.7e-4, final = 2.7e-5;
    std::int64_t warmup_steps = 2000;
    std::int64_t decay_from = 0;  // step at which the cosine begins
  } learning_rate;
  struct {
    double mtp = 0.3, mtp_decay = 0.1;  // the second from decay_from on
    double balance = 1e-4, index = 1;
  } loss;
  double bias_update_speed = 1e-3;
  struct {
    OptimizerKind kind = OptimizerKind::muon;
    double momentum = 0.95, gamma = 0.18;
    double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-20;
    double weight_decay = 0.1;
    double clip_norm = 1;  // 0: no clipping
    Precision newton_schulz = Precision::bf16;
  } optimizer;
  struct {
    double embedding = 0.02, head = 0.02;  // standard deviations
    double output = 1;                     // factor on the last matrix of every sublayer (wo_b, w2)
    CombStart comb = CombStart::identity;
  } initial;
  std::optional<std::int64_t> fp4_from_step;

  struct {
    Anticipation mode = Anticipation::off;
    std::int64_t delay = 8;    // steps that the routing's parameters are behind
    std::int64_t steps = 200;  // for how long after a spike
  } anticipatory_routing;
  struct {
    double rise = 0;  // nats above the mean of the window; 0: no detection
    std::int64_t window = 32;
    std::int64_t rollbacks = 3;  // at most
  } spike;
  struct {
    std::int64_t every = 200, keep = 3;
  } snapshot;
  struct {
    std::int64_t every = 0, windows = 64;  // 0: only at the end
  } evaluation;

  std::int64_t tokens_ahead() const { return 1 + config.num_nextn_predict_layers; }
  // All fields, defaults filled in and paths made absolute; parses to this recipe again.
  std::string to_json() const;
};

// `directory`: what relative paths in it are relative to. Errors: invalid_argument, corrupt (not JSON).
Result<TrainingRecipe> parse_recipe(std::string_view json, const std::filesystem::path& directory);
Result<TrainingRecipe> load_recipe(const std::filesystem::path& path);

}  // namespace hadal
