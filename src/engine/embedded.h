// The default model, which is part of the binary, as a model that runs.
#pragma once

#include <hadal/error.h>

#include "base/log.h"
#include "model/model.h"

namespace hadal {

// Errors: corrupt, of a binary that was built wrong.
Result<Model> load_embedded_model(const Notice& notice);

}  // namespace hadal
