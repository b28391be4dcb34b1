#include "engine/embedded.h"

#include <cstring>

#include "embedded_model.h"

namespace hadal {

Result<Model> load_embedded_model(const Notice& notice) {
  const EmbeddedModel files = embedded_model();
  HADAL_ASSIGN_OR_RETURN(Config config, parse_config(files.config_json));
  auto image = Buffer<std::byte>::uninitialised(files.weights.size());  // aligned, unlike those of the binary
  std::memcpy(image.data(), files.weights.data(), files.weights.size());
  HADAL_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::from_bytes(std::move(image), "embedded model"));
  return Model::bind(std::move(config), std::move(checkpoint), notice);
}

}  // namespace hadal
