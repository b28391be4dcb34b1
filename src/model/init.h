// Random checkpoints in the published layout, for tests, benchmarks and training from scratch: every value is
// a pure function of (seed, tensor name, element index), so neither threads nor shards show in the result.
//
// The values are such that activations stay of order one through all layers: linear weights have variance
// 1/fan_in, norms are near one (docs/formats.md lists the laws). FP8 and FP4 weights are drawn as codes, with
// block scales that differ from block to block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <hadal/error.h>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "model/checkpoint_writer.h"
#include "model/config.h"
#include "model/parameters.h"

namespace hadal {

struct InitOptions {
  std::uint64_t seed = 0;
  StorageFormat format = StorageFormat::published;
  std::int64_t shard_bytes = 4'000'000'000;  // of tensors in one file; a larger tensor gets its own
  bool force = false;                        // replace a checkpoint that is already there
  // Told after every few MB how many of how many bytes are written; false stops the work (`cancelled`).
  std::function<bool(std::int64_t done, std::int64_t total)> progress;
};

using InitSummary = CheckpointSummary;

// `config` with the storage formats that a checkpoint written in `format` has.
Config config_for_format(Config config, StorageFormat format);

// Writes config.json and model.safetensors (or shards and their index) into `directory`, made if need be.
// Memory is bounded by a few MB and the list of tensors. All files are written under a temporary directory
// inside `directory` and renamed at the end, the index last. Errors: invalid_argument (a checkpoint is there
// and `force` is not set), resource_exhausted (not enough disk), io, cancelled; the directory is then as it
// was.
Result<InitSummary> init_checkpoint(const Config& config, const std::filesystem::path& directory,
                                    const InitOptions& options, ThreadPool& pool);

// The same tensors as one safetensors image, for Checkpoint::from_bytes; byte for byte the file that
// init_checkpoint writes when all fits in one shard. The matching config is config_for_format's. Errors:
// resource_exhausted when the image would not fit in this machine's memory.
Result<Buffer<std::byte>> init_checkpoint_bytes(const Config& config, std::uint64_t seed,
                                                StorageFormat format, ThreadPool& pool);

}  // namespace hadal
