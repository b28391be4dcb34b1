// Any text as a config.json: refused in one line, or a Config that survives being written and read again and
// whose counts can be computed.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/config.h"
#include "model/inventory.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto config = hadal::parse_config(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!config) {
    const std::string& message = config.error().message();
    if (message.size() > 400 || message.find('\n') != std::string::npos) std::abort();
    return 0;
  }
  config->has_dspark = false;  // not written
  const auto again = hadal::parse_config(hadal::config_to_json(*config));
  if (!again || *again != *config) std::abort();
  if (hadal::cache_cost(*config).bytes_per_token < 0) std::abort();
  if (config->num_blocks() * config->n_routed_experts > 2000) return 0;  // keeps an execution short
  const auto inventory = hadal::expected_inventory(*config, hadal::StorageFormat::published);
  if (inventory.bytes <= 0 || hadal::count_parameters(*config).active <= 0) std::abort();
  return 0;
}
