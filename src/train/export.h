// A trained model as a checkpoint that `hadal run` and transformers load: the published layout in FP4, FP8
// and BF16, or all in BF16 or F32.
#pragma once

#include <filesystem>

#include <hadal/error.h>

#include "model/checkpoint_writer.h"
#include "model/parameters.h"
#include "train/parameter_set.h"

namespace hadal {

struct ExportSummary {
  CheckpointSummary checkpoint;
  // Published format: 128x128 tiles of FP4 experts, and those that FP8 with one scale a tile would not hold
  // without loss, because their FP4 scales are too far apart.
  std::int64_t fp4_tiles = 0, fp4_tiles_beyond_fp8 = 0;
};

// `config` is the model's, whatever its storage formats; `tokenizer`, if not empty, is copied beside it.
// Errors: those of write_checkpoint; invalid_argument for a weight that is not finite (with its name).
Result<ExportSummary> export_checkpoint(const Config& config, const ParameterSet& weights,
                                        const std::filesystem::path& directory, StorageFormat format,
                                        const std::filesystem::path& tokenizer,
                                        const CheckpointOptions& options, ThreadPool& pool);

}  // namespace hadal
