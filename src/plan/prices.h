// What a million tokens costs on a machine of one's own, and what DeepSeek has asked for it (docs/plan.md).
#pragma once

#include <span>
#include <string_view>

#include "plan/profile.h"
#include "plan/roofline.h"

namespace hadal {

// USD per million tokens.
struct TokenPrices {
  double hit = 0;     // prompt tokens whose state is cached
  double miss = 0;    // prompt tokens that are read
  double output = 0;  // tokens that are written

  // Of prompt tokens, where this share of them hits the cache.
  double input(double hit_rate) const { return hit_rate * hit + (1 - hit_rate) * miss; }
};

// DeepSeek's own API. Prices hold from their day to the next line's.
struct PriceRecord {
  std::string_view from;  // "2026-04-24"
  TokenPrices flash, pro;
  std::string_view note;
};
std::span<const PriceRecord> price_history();

struct Economics {
  double years = 4;           // that a machine is written off over
  double usd_per_kwh = 0.10;  // at the wall
  double utilisation = 0.5;   // share of the time that it is busy
};
// Of a machine, busy or not.
double usd_per_second(const HardwareProfile& hardware, const Economics& economics);

// `prompt_rate` and `output_rate` in tokens per second of the whole machine. A hit reads the cached rows of
// `context` tokens back from storage and recomputes the tokens that the windows need (recomputed_tokens).
TokenPrices own_prices(const Config& config, const HardwareProfile& hardware, const Economics& economics,
                       std::int64_t context, double prompt_rate, double output_rate);

// The last window x layers tokens, where windows are not kept with a prefix; 0 for a model without windows.
std::int64_t recomputed_tokens(const Config& config);

}  // namespace hadal
