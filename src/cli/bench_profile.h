// hadal bench --profile: where the time of a forward goes, as a table and as JSON.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

#include "ops/profile.h"

namespace hadal::cli {

// The ops of some forwards of one kind.
struct ForwardProfile {
  Profile ops;
  std::int64_t forwards = 0;
  double seconds = 0;  // of the forwards; what the ops leave of it passed between them

  void add_forward(double its_seconds) {
    forwards += 1;
    seconds += its_seconds;
  }
};

// Both per forward, the longest first.
nlohmann::ordered_json to_json(const ForwardProfile& profile, const std::string& phase, std::int64_t context);
std::string to_table(const ForwardProfile& profile, const std::string& phase, std::int64_t context);

}  // namespace hadal::cli
