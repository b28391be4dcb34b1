// A machine to plan for, as a JSON file (docs/plan.md): the ones that come with hadal, a user's own, or this
// host as measured.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "plan/cost.h"

namespace hadal {

// What a class of ops was measured to reach, instead of a share of the machine's limits.
struct ClassRate {
  double gbps = 0;    // reading its weights or rows
  double gflops = 0;  // multiplying
};

struct HardwareProfile {
  std::string name, title, source;
  std::int64_t devices = 1;
  // Of each device.
  double memory_gb = 0;
  double memory_gbps = 0;
  double fp4_tflops = 0, fp8_tflops = 0, bf16_tflops = 0;
  double link_gbps = 0;  // to the others, in one direction; 0: there are none
  double link_us = 0;    // of one exchange, whatever its size
  double layer_us = 0;   // of a layer, whatever it computes: launches, small ops
  double token_us = 0;   // of a token in a layer: ops that are no products
  double attainable_memory = 1, attainable_compute = 1;  // shares of the above that kernels reach
  double watts = 0;                                      // at the wall, with its share of the server
  double price_usd = 0;                                  // likewise
  double storage_gbps = 0;                               // of the whole machine: cached prefixes read back
  std::array<std::optional<ClassRate>, kOpClasses> classes{};

  double tflops(Arithmetic arithmetic) const;
};

// The names of the profiles that come with hadal, in the order of the documentation.
std::vector<std::string> profile_names();
// By one of these names, or from the file of that path. Errors: not_found, naming what there is; corrupt,
// naming the field that is missing or wrong.
Result<HardwareProfile> load_profile(const std::string& name_or_path);
Result<HardwareProfile> parse_profile(std::string_view json_text);
std::string profile_to_json(const HardwareProfile& profile);

}  // namespace hadal
