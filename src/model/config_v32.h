// config.json of DeepSeek-V3.2 (model_type deepseek_v32), the baseline of the published comparison.
#pragma once

#include <string>

#include <hadal/error.h>

#include "model/config.h"
#include "model/config_reader.h"

namespace hadal::config_detail {

// As parse_config, config_to_json and preset_config. The MTP layer behind the last one is not part of what
// hadal runs: num_nextn_predict_layers is 0 here, whatever the file says.
Result<Config> parse_v32(const Json& root);
std::string v32_to_json(const Config& c);
Result<Config> v32_preset();

}  // namespace hadal::config_detail
