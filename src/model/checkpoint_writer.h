// Writes a checkpoint in the published layout from tensors that are made piece by piece: config.json and
// model.safetensors, or shards and their index. `hadal init` and the trainer's exports go through here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <hadal/error.h>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "formats/safetensors_writer.h"
#include "model/config.h"

namespace hadal {

struct CheckpointTensor {
  AnnouncedTensor stored;
  bool with_previous = false;  // in the same shard as the tensor before it: the scales of a weight
};

// Elements [begin, end) of tensor `tensor`, as they lie in the file; called on several threads. `begin` is a
// multiple of 8.
using FillTensor =
    std::function<void(std::size_t tensor, std::int64_t begin, std::int64_t end, std::byte* out)>;

struct CheckpointOptions {
  std::int64_t shard_bytes = 4'000'000'000;  // of tensors in one file; a larger tensor gets its own
  bool force = false;                        // replace a checkpoint that is already there
  // Told after every few MB how many of how many bytes are written; false stops the work (`cancelled`).
  std::function<bool(std::int64_t done, std::int64_t total)> progress;
};

struct CheckpointSummary {
  std::int64_t tensors = 0;
  std::int64_t bytes = 0;           // of tensors, without headers
  std::vector<std::string> shards;  // file names
};

// Writes into `directory`, made if need be. `config` becomes config.json and must say how the tensors are
// stored. Memory is bounded by a few MB. All files are written under a temporary directory inside `directory`
// and renamed at the end, the index last. Errors: invalid_argument (a checkpoint is there and `force` is not
// set), resource_exhausted (not enough disk), io, cancelled; the directory is then as it was.
Result<CheckpointSummary> write_checkpoint(const Config& config, const std::filesystem::path& directory,
                                           std::span<const CheckpointTensor> tensors, const FillTensor& fill,
                                           const CheckpointOptions& options, ThreadPool& pool);

// The one file of that checkpoint as bytes in memory, for Checkpoint::from_bytes. Errors: resource_exhausted
// when it would not fit in this machine's memory.
Result<Buffer<std::byte>> checkpoint_image(std::span<const CheckpointTensor> tensors, const FillTensor& fill,
                                           ThreadPool& pool);

}  // namespace hadal
