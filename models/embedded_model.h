// The files of the default model, linked into the binary.
#pragma once

#include <string_view>

namespace hadal {

struct EmbeddedModel {
  std::string_view config_json;
  std::string_view tokenizer_json;
  std::string_view weights;  // model.safetensors
};
EmbeddedModel embedded_model();

}  // namespace hadal
