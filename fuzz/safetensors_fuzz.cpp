// Any bytes as a safetensors file: refused, or every byte of every tensor can be read and they cover the
// data.
#include <cstdint>
#include <cstdlib>

#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto entries = hadal::parse_safetensors(std::as_bytes(std::span(data, size)), "input");
  if (!entries) {
    if (entries.error().message().find('\n') != std::string::npos) std::abort();
    return 0;
  }
  std::int64_t total = 0;
  volatile std::uint8_t sink = 0;
  for (const auto& [name, tensor] : *entries) {
    for (std::int64_t i = 0; i < tensor.bytes(); ++i)
      sink = static_cast<std::uint8_t>(sink ^ std::to_integer<std::uint8_t>(tensor.data[i]));
    total += tensor.bytes();
  }
  if (total > static_cast<std::int64_t>(size)) std::abort();
  return 0;
}
