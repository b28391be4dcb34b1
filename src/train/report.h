// The curves of a run as one HTML page that needs nothing else: inline SVG of the losses, the learning rate,
// the gradient's norm, the routers' load, the sums of the mHC mixing matrices, and tokens per second.
#pragma once

#include <filesystem>
#include <string>

#include <hadal/error.h>

namespace hadal {

// From RUN/recipe.json and RUN/metrics.jsonl. Errors: not_found, io, corrupt; invalid_argument for a run
// without steps.
Result<std::string> training_report(const std::filesystem::path& run);

}  // namespace hadal
