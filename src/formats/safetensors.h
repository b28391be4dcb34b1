// A safetensors file in memory: 8 bytes of header length, a JSON header, then the tensors' bytes
// (docs/formats.md). Everything the header says is checked before any of it is believed.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "tensor/tensor_ref.h"

namespace hadal {

struct SafetensorsEntry {
  std::string name;
  TensorRef tensor;  // points into the bytes that were parsed
};

// The entries in the order of their bytes. The bytes must outlive them. `name` names the file in errors.
// Errors: corrupt (truncated, a header longer than the file or over 100 MB, malformed JSON, offsets that
// overlap, leave holes, or do not match dtype and shape, duplicate names), unsupported (a dtype that no
// DeepSeek-V4 checkpoint has).
Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> bytes,
                                                        std::string_view name);

}  // namespace hadal
