// A training run on disk (docs/training_files.md has the bytes of a snapshot):
//
//   RUN/recipe.json            the recipe as used, every default filled in
//   RUN/metrics.jsonl          one line per step
//   RUN/snapshots/step-N.snap  everything that step N needs; the latest few
//
// A snapshot is written under a temporary name, flushed to the device and renamed, so whatever happens there
// is the one before. A run resumed from it continues bit for bit.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <vector>

#include <hadal/error.h>

#include "dist/communicator.h"
#include "train/optimizer.h"
#include "train/ownership.h"
#include "train/parameter_set.h"

namespace hadal {

// What a trainer knows beside weights and moments. The position in the data is the step itself.
struct TrainerState {
  std::int64_t step = 0;              // the next one to do
  std::deque<double> recent_losses;   // of the window of the spike detector
  std::int64_t anticipate_until = 0;  // anticipatory routing is on in the steps before this one
  std::int64_t rollbacks = 0;
  std::int64_t last_spike = -1;                   // the step that was rolled back from
  std::deque<std::vector<std::int32_t>> routing;  // of the next steps, the first for `step`; empty: none
  double best_validation = 0;                     // 0: none yet
};

std::filesystem::path snapshot_path(const std::filesystem::path& run, std::int64_t step);
// Ascending by step.
std::vector<std::int64_t> list_snapshots(const std::filesystem::path& run);

// A snapshot is whole, whoever had its numbers: all ranks call this, and the first one writes. Errors, there
// alone: io; resource_exhausted for a full disk, saying that the snapshot before it is intact.
Status write_snapshot(const std::filesystem::path& run, std::uint64_t config_hash, const TrainerState& state,
                      const ParameterSet& weights, const Optimizer::State& optimizer, const Ownership& owned,
                      Communicator& ranks);
// What this rank has of it. Checks every checksum before it changes anything. Errors: not_found, io, corrupt,
// invalid_argument (of another model).
Status read_snapshot(const std::filesystem::path& path, std::uint64_t config_hash, TrainerState& state,
                     ParameterSet& weights, Optimizer::State& optimizer, const Ownership& owned, int rank);
// Only the weights; for exports.
Status read_snapshot_weights(const std::filesystem::path& path, std::uint64_t config_hash,
                             ParameterSet& weights);
// All but the last `keep`.
void prune_snapshots(const std::filesystem::path& run, std::int64_t keep);

// Of what the arrays of a snapshot depend on.
std::uint64_t config_hash(const Config& config);

}  // namespace hadal
