#include "plan/profile.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"

namespace hadal {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kBuiltin[] = {
#include "plan/builtin_profiles.inc"
};
constexpr std::size_t kMaxText = std::size_t{1} << 16;

struct NumberField {
  const char* key;
  double HardwareProfile::*value;
  double low;  // and what lies between it and 1e12 is believed
};
constexpr NumberField kNumbers[] = {
    {"memory_gb", &HardwareProfile::memory_gb, 1e-3},
    {"memory_gbps", &HardwareProfile::memory_gbps, 1e-3},
    {"fp4_tflops", &HardwareProfile::fp4_tflops, 1e-6},
    {"fp8_tflops", &HardwareProfile::fp8_tflops, 1e-6},
    {"bf16_tflops", &HardwareProfile::bf16_tflops, 1e-6},
    {"link_gbps", &HardwareProfile::link_gbps, 0},
    {"link_us", &HardwareProfile::link_us, 0},
    {"layer_us", &HardwareProfile::layer_us, 0},
    {"token_us", &HardwareProfile::token_us, 0},
    {"attainable_memory", &HardwareProfile::attainable_memory, 1e-3},
    {"attainable_compute", &HardwareProfile::attainable_compute, 1e-3},
    {"watts", &HardwareProfile::watts, 0},
    {"price_usd", &HardwareProfile::price_usd, 0},
    {"storage_gbps", &HardwareProfile::storage_gbps, 1e-6},
};

// A number of these units and nothing else: "141 GB" is refused.
Result<double> number(const Json& object, const std::string& key, double low, double high) {
  const auto at = object.find(key);
  if (at == object.end()) return fail(ErrorCode::corrupt, fmt::format("'{}' is missing", key));
  const double value = at->is_number() ? at->get<double>() : -1;
  if (!at->is_number() || !(value >= low && value <= high)) {
    const std::string found = at->is_structured() ? at->type_name() : at->dump();
    return fail(ErrorCode::corrupt,
                fmt::format("'{}' is {}, expected a number from {} to {}, without a unit: it "
                            "is part of the name",
                            key, found.substr(0, 60), low, high));
  }
  return value;
}

Status read_classes(const Json& classes, HardwareProfile& profile) {
  if (!classes.is_object()) return fail(ErrorCode::corrupt, "'classes' is not an object");
  for (const auto& [name, rates] : classes.items()) {
    std::size_t i = 0;
    while (i < kOpClasses && to_string(static_cast<OpClass>(i)) != name) ++i;
    if (i == kOpClasses || !rates.is_object())
      return fail(ErrorCode::corrupt,
                  fmt::format("'classes' has '{}', which is no class of ops with rates", name.substr(0, 60)));
    ClassRate rate;
    for (const auto& [key, slot] : {std::pair{"gbps", &rate.gbps}, std::pair{"gflops", &rate.gflops}}) {
      auto value = number(rates, key, 1e-6, 1e12);
      if (!value) return tl::unexpected(std::move(value).error().with_context("classes." + name));
      *slot = *value;
    }
    profile.classes[i] = rate;
  }
  return {};
}

}  // namespace

double HardwareProfile::tflops(Arithmetic arithmetic) const {
  switch (arithmetic) {
    case Arithmetic::fp4:
      return fp4_tflops;
    case Arithmetic::fp8:
      return fp8_tflops;
    case Arithmetic::bf16:
      return bf16_tflops;
    case Arithmetic::f32:
      return bf16_tflops / 2;
  }
  return bf16_tflops;
}

Result<HardwareProfile> parse_profile(std::string_view json_text) {
  const Json root = Json::parse(json_text, nullptr, false);
  if (!root.is_object()) return fail(ErrorCode::corrupt, "not a JSON object");
  HardwareProfile profile;
  for (const auto& [key, slot] : {std::pair{"name", &profile.name}, std::pair{"title", &profile.title},
                                  std::pair{"source", &profile.source}}) {
    const auto at = root.find(key);
    if (at == root.end()) return fail(ErrorCode::corrupt, fmt::format("'{}' is missing", key));
    if (!at->is_string()) return fail(ErrorCode::corrupt, fmt::format("'{}' is not a string", key));
    *slot = at->get<std::string>();
  }
  HADAL_ASSIGN_OR_RETURN(const double devices, number(root, "devices", 1, 1 << 20));
  profile.devices = static_cast<std::int64_t>(devices);
  if (static_cast<double>(profile.devices) != devices)
    return fail(ErrorCode::corrupt, fmt::format("'devices' is {}, not a whole number", devices));
  for (const NumberField& field : kNumbers) {
    HADAL_ASSIGN_OR_RETURN(profile.*field.value, number(root, field.key, field.low, 1e12));
  }
  for (const double share : {profile.attainable_memory, profile.attainable_compute}) {
    if (share > 1)
      return fail(ErrorCode::corrupt, fmt::format("an attainable share of {} is more than 1", share));
  }
  if (profile.devices > 1 && profile.link_gbps <= 0)
    return fail(ErrorCode::corrupt,
                fmt::format("'link_gbps' is 0, but there are {} devices", profile.devices));
  if (const auto classes = root.find("classes"); classes != root.end())
    HADAL_RETURN_IF_ERROR(read_classes(*classes, profile));
  return profile;
}

std::string profile_to_json(const HardwareProfile& profile) {
  Json out = {{"name", profile.name},
              {"title", profile.title},
              {"source", profile.source},
              {"devices", profile.devices}};
  for (const NumberField& field : kNumbers) out[field.key] = profile.*field.value;
  for (std::size_t i = 0; i < kOpClasses; ++i) {
    if (const auto& rate = profile.classes[i])
      out["classes"][std::string(to_string(static_cast<OpClass>(i)))] = {{"gbps", rate->gbps},
                                                                         {"gflops", rate->gflops}};
  }
  return out.dump(2) + "\n";
}

std::vector<std::string> profile_names() {
  std::vector<std::string> names;
  for (const std::string_view text : kBuiltin) names.push_back(Json::parse(text)["name"]);
  return names;
}

Result<HardwareProfile> load_profile(const std::string& name_or_path) {
  for (const std::string_view text : kBuiltin) {
    auto profile = parse_profile(text);
    if (profile && profile->name == name_or_path) return profile;
  }
  const auto text = read_file(name_or_path, kMaxText);
  if (!text) {
    return fail(ErrorCode::not_found,
                fmt::format("hardware '{}' is neither a file that can be read nor one of {} or host",
                            name_or_path, fmt::join(profile_names(), ", ")));
  }
  auto profile = parse_profile(*text);
  if (!profile) return tl::unexpected(std::move(profile).error().with_context(name_or_path));
  return profile;
}

}  // namespace hadal
