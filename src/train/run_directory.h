// The directory of a run beside its snapshots (train/snapshot.h): the recipe as used, the lock, and the
// metrics, one line of JSON for every step.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include <hadal/error.h>

#include "train/objective.h"
#include "train/schedule.h"

namespace hadal {

// What a step was like; a line of metrics.jsonl.
struct StepMetrics {
  StepPlan plan;
  Losses losses;
  double gradient_norm = 0;
  double load_max =
      0;  // the largest share of a block's tokens that one expert got, times the number of experts
  double load_min = 0;  // the smallest, likewise
  MixingSums mixing;
  bool anticipated = false;  // routing by earlier parameters
  bool spike = false;
  std::optional<Losses> validation;
  double model_seconds = 0;      // forward and backward
  double optimizer_seconds = 0;  // clipping and update
  double seconds = 0;            // all of the step
};
std::string to_json(const StepMetrics& metrics);

// One trainer per run directory; the lock goes with the process.
class RunLock {
 public:
  static Result<RunLock> take(const std::filesystem::path& run);
  RunLock(RunLock&& other) noexcept;
  RunLock& operator=(RunLock&& other) noexcept;
  ~RunLock();

 private:
  explicit RunLock(int fd) : fd_(fd) {}
  int fd_;
};

// Whether a run is there already, which must then be of this recipe (TrainingRecipe::to_json) and meant to be
// resumed. Errors: invalid_argument, io.
Result<bool> find_run(const std::filesystem::path& run, const std::string& recipe, bool resume);
// Makes the directory and writes the recipe, if they are not `there`, and takes the lock.
Result<RunLock> open_run(const std::string& recipe, const std::filesystem::path& run, bool there);

// metrics.jsonl.
class MetricsFile {
 public:
  // Keeps the lines of steps before `step`: a resumed run says the later ones again.
  static Result<MetricsFile> open(const std::filesystem::path& path, std::int64_t step);
  // A line is there once it is a line.
  Status write(const std::string& line);

 private:
  MetricsFile(std::filesystem::path path, std::ofstream out) : path_(std::move(path)), out_(std::move(out)) {}
  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace hadal
