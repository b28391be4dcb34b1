#include "cli/bench_profile.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include <fmt/format.h>

namespace hadal::cli {
namespace {

std::vector<Profile::Entry> longest_first(const ForwardProfile& profile) {
  std::vector<Profile::Entry> entries(profile.ops.entries().begin(), profile.ops.entries().end());
  double between = profile.seconds;
  for (const auto& entry : entries) between -= entry.seconds;
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  entries.push_back(Profile::Entry{OpWork{"between ops", ""}, 0, between});
  return entries;
}

}  // namespace

nlohmann::ordered_json to_json(const ForwardProfile& profile, const std::string& phase,
                               std::int64_t context) {
  const auto forwards = static_cast<double>(profile.forwards);
  auto ops = nlohmann::ordered_json::array();
  for (const auto& entry : longest_first(profile)) {
    nlohmann::ordered_json op = {{"op", entry.work.op},
                                 {"parameter", entry.work.parameter},
                                 {"calls", static_cast<double>(entry.calls) / forwards},
                                 {"seconds", entry.seconds / forwards},
                                 {"share", entry.seconds / profile.seconds}};
    if (entry.work.weight_bytes > 0) op["weight_gbps"] = entry.work.weight_bytes / entry.seconds / 1e9;
    if (entry.work.flops > 0) op["gflops"] = entry.work.flops / entry.seconds / 1e9;
    ops.push_back(std::move(op));
  }
  return {{"phase", phase},
          {"context", context},
          {"forwards", profile.forwards},
          {"seconds", profile.seconds / forwards},
          {"ops", std::move(ops)}};
}

std::string to_table(const ForwardProfile& profile, const std::string& phase, std::int64_t context) {
  const auto forwards = static_cast<double>(profile.forwards);
  std::string out = fmt::format("\n{} at context {}: {:.3f} ms a forward, mean of {}\n", phase, context,
                                1e3 * profile.seconds / forwards, profile.forwards);
  fmt::format_to(std::back_inserter(out), "{:<17} {:<32} {:>7} {:>10} {:>7} {:>13} {:>9}\n", "op",
                 "parameter", "calls", "ms", "share", "weights GB/s", "GFLOP/s");
  for (const auto& entry : longest_first(profile)) {
    const auto rate = [&](double amount) {
      return amount > 0 ? fmt::format("{:.1f}", amount / entry.seconds / 1e9) : std::string("-");
    };
    fmt::format_to(std::back_inserter(out), "{:<17} {:<32} {:>7g} {:>10.3f} {:>6.1f}% {:>13} {:>9}\n",
                   entry.work.op, entry.work.parameter, static_cast<double>(entry.calls) / forwards,
                   1e3 * entry.seconds / forwards, 100 * entry.seconds / profile.seconds,
                   rate(entry.work.weight_bytes), rate(entry.work.flops));
  }
  return out;
}

}  // namespace hadal::cli
