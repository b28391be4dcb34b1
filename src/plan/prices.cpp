#include "plan/prices.h"

#include <algorithm>

namespace hadal {
namespace {

constexpr PriceRecord kHistory[] = {
    {"2026-04-24", {0.028, 0.14, 0.28}, {0.145, 1.74, 3.48}, ""},
    {"2026-04-26", {0.0028, 0.14, 0.28}, {0.0145, 1.74, 3.48}, ""},
    {"2026-05-22", {0.0028, 0.14, 0.28}, {0.003625, 0.435, 0.87}, ""},
    {"2026-08-16", {0.007, 0.22, 0.66}, {0.022, 0.66, 1.98}, "off-peak; peak is double"},
};

}  // namespace

std::span<const PriceRecord> price_history() {
  return kHistory;
}

double usd_per_second(const HardwareProfile& hardware, const Economics& economics) {
  constexpr double kSecondsPerYear = 365.25 * 24 * 3600, kJoulesPerKwh = 3.6e6;
  const double device = hardware.price_usd / (economics.years * kSecondsPerYear) +
                        hardware.watts / kJoulesPerKwh * economics.usd_per_kwh;
  return device * static_cast<double>(hardware.devices);
}

std::int64_t recomputed_tokens(const Config& config) {
  return config.sliding_window * config.num_hidden_layers;
}

TokenPrices own_prices(const Config& config, const HardwareProfile& hardware, const Economics& economics,
                       std::int64_t context, double prompt_rate, double output_rate) {
  const double busy = usd_per_second(hardware, economics) / economics.utilisation;
  const auto tokens = static_cast<double>(std::max<std::int64_t>(1, context));
  const double row_bytes = cache_cost(config).bytes_per_token;
  const double again = std::min(1.0, static_cast<double>(recomputed_tokens(config)) / tokens);
  TokenPrices prices;
  prices.output = 1e6 * busy / output_rate;
  prices.miss = 1e6 * busy / prompt_rate;
  prices.hit = 1e6 * busy * row_bytes / (hardware.storage_gbps * 1e9) + again * prices.miss;
  return prices;
}

}  // namespace hadal
