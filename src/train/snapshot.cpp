#include "train/snapshot.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <xxhash.h>

#include "base/file_writer.h"
#include "base/mapped_file.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::array<char, 8> kMagic = {'H', 'A', 'D', 'A', 'L', 'S', 'N', 'P'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kAlign = 64;

struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t json_bytes = 0;
  std::uint64_t json_hash = 0;  // XXH3
};
static_assert(sizeof(Header) == 24);

struct Array {
  std::string name;
  std::span<const std::byte> bytes;
};

std::uint64_t hash_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}
std::size_t round_up(std::size_t n) {
  return (n + kAlign - 1) / kAlign * kAlign;
}

// Where the arrays of a snapshot go, or come from.
struct Arrays {
  std::vector<std::pair<std::string, std::span<std::byte>>> list;

  template <class T>
  void add(std::string name, std::span<T> values) {
    list.emplace_back(std::move(name), std::as_writable_bytes(values));
  }
  void add_weights(ParameterSet& weights) {
    add("weights", weights.values());
    for (const Parameter& p : weights.parameters())
      if (p.info.role == Role::hash_table) add("table " + p.info.name, weights.table(p));
  }
};

Status write_arrays(const fs::path& path, Json json, std::span<const Array> arrays) {
  for (const Array& array : arrays) {
    json["arrays"].push_back({{"name", array.name},
                              {"bytes", array.bytes.size()},
                              {"xxh3", fmt::format("{:016x}", hash_of(array.bytes))}});
  }
  std::string text = json.dump();
  // Spaces, so that the arrays start at a multiple of 64 bytes.
  text.resize(round_up(sizeof(Header) + text.size()) - sizeof(Header), ' ');
  Header header;
  header.json_bytes = static_cast<std::uint32_t>(text.size());
  header.json_hash = XXH3_64bits(text.data(), text.size());
  constexpr std::array<std::byte, kAlign> kZeros{};
  HADAL_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::create(path));
  HADAL_RETURN_IF_ERROR(writer.write(std::as_bytes(std::span(&header, 1))));
  HADAL_RETURN_IF_ERROR(writer.write(text));
  for (const Array& array : arrays) {
    HADAL_RETURN_IF_ERROR(writer.write(array.bytes));
    HADAL_RETURN_IF_ERROR(
        writer.write(std::span(kZeros).first(round_up(array.bytes.size()) - array.bytes.size())));
  }
  return writer.commit();
}

// A snapshot whose checksums are all right.
struct Opened {
  MappedFile file;
  Json json;
  std::vector<Array> arrays;
};

Result<Opened> open_snapshot(const fs::path& path, std::uint64_t config) {
  Opened opened;
  HADAL_ASSIGN_OR_RETURN(opened.file, MappedFile::open(path));
  const auto bytes = opened.file.bytes();
  const auto corrupt = [&](std::string_view what) {
    return fail(ErrorCode::corrupt, fmt::format("{}: {}", path.string(), what));
  };
  Header header;
  if (bytes.size() < sizeof(header)) return corrupt("too short for a snapshot");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic) return corrupt("not a snapshot");
  if (header.version != kVersion)
    return fail(ErrorCode::unsupported, fmt::format("{}: version {} of the format, this hadal reads {}",
                                                    path.string(), header.version, kVersion));
  if (header.json_bytes > bytes.size() - sizeof(header)) return corrupt("cut short");
  const auto text = bytes.subspan(sizeof(header), header.json_bytes);
  if (hash_of(text) != header.json_hash) return corrupt("the checksum of its header does not match");
  opened.json = Json::parse(reinterpret_cast<const char*>(text.data()),
                            reinterpret_cast<const char*>(text.data()) + text.size(), nullptr, false);
  try {
    if (opened.json.at("config").get<std::uint64_t>() != config) {
      return fail(ErrorCode::invalid_argument, fmt::format("{}: a snapshot of another model", path.string()));
    }
    std::size_t at = sizeof(header) + header.json_bytes;
    for (const Json& entry : opened.json.at("arrays")) {
      const auto size = entry.at("bytes").get<std::size_t>();
      if (size > bytes.size() - at) return corrupt("cut short");
      const Array array{entry.at("name").get<std::string>(), bytes.subspan(at, size)};
      if (fmt::format("{:016x}", hash_of(array.bytes)) != entry.at("xxh3").get<std::string>())
        return corrupt(fmt::format("the checksum of \"{}\" does not match", array.name));
      opened.arrays.push_back(array);
      at += std::min(round_up(size), bytes.size() - at);
    }
  } catch (const Json::exception& error) {
    return corrupt(error.what());
  }
  return opened;
}

Status copy_arrays(const Opened& opened, const fs::path& path, const Arrays& wanted) {
  std::vector<const Array*> sources;
  for (const auto& [name, to] : wanted.list) {
    const auto found = std::find_if(opened.arrays.begin(), opened.arrays.end(),
                                    [&name = name](const Array& array) { return array.name == name; });
    if (found == opened.arrays.end() || found->bytes.size() != to.size())
      return fail(ErrorCode::corrupt,
                  fmt::format("{}: no array \"{}\" of {} bytes", path.string(), name, to.size()));
    sources.push_back(&*found);
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (!sources[i]->bytes.empty())
      std::memcpy(wanted.list[i].second.data(), sources[i]->bytes.data(), sources[i]->bytes.size());
  }
  return {};
}

Arrays arrays_of(ParameterSet& weights, Optimizer::State& optimizer) {
  Arrays arrays;
  arrays.add_weights(weights);
  arrays.add("first moments", optimizer.first.values());
  arrays.add("second moments", optimizer.second.span());
  return arrays;
}

}  // namespace

fs::path snapshot_path(const fs::path& run, std::int64_t step) {
  return run / "snapshots" / fmt::format("step-{:08}.snap", step);
}

std::vector<std::int64_t> list_snapshots(const fs::path& run) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator at(run / "snapshots", error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (!name.starts_with("step-") || !name.ends_with(".snap")) continue;
    const std::string digits = name.substr(5, name.size() - 10);
    if (!digits.empty() && digits.size() <= 15 && digits.find_first_not_of("0123456789") == std::string::npos)
      steps.push_back(std::stoll(digits));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::uint64_t config_hash(const Config& config) {
  Config shapes = config;
  shapes.rope_scaling.reset();  // differs from stage to stage
  const std::string text = config_to_json(shapes);
  return XXH3_64bits(text.data(), text.size());
}

Status write_snapshot(const fs::path& run, std::uint64_t config, const TrainerState& state,
                      const ParameterSet& weights, const Optimizer::State& optimizer) {
  std::error_code error;
  fs::create_directories(run / "snapshots", error);
  if (error) {
    return fail(ErrorCode::io, fmt::format("{}: cannot create the directory: {}",
                                           (run / "snapshots").string(), error.message()));
  }
  Json json = {{"config", config},
               {"step", state.step},
               {"recent_losses", state.recent_losses},
               {"anticipate_until", state.anticipate_until},
               {"rollbacks", state.rollbacks},
               {"last_spike", state.last_spike},
               {"best_validation", state.best_validation},
               {"indexer_steps", optimizer.indexer_steps},
               {"other_steps", optimizer.other_steps},
               {"routings", state.routing.size()}};
  // The same list serves reading, which writes to the spans; here nobody does.
  const Arrays list = arrays_of(const_cast<ParameterSet&>(weights), const_cast<Optimizer::State&>(optimizer));
  std::vector<Array> arrays;
  for (const auto& [name, bytes] : list.list) arrays.push_back({name, bytes});
  for (std::size_t i = 0; i < state.routing.size(); ++i)
    arrays.push_back({fmt::format("routing {}", i), std::as_bytes(std::span(state.routing[i]))});
  Status status = write_arrays(snapshot_path(run, state.step), std::move(json), arrays);
  if (!status) {
    const auto before = list_snapshots(run);
    return fail(
        status.error().code(),
        fmt::format("{}; {}", status.error().message(),
                    before.empty() ? "there is no earlier snapshot"
                                   : fmt::format("the snapshot of step {} is intact", before.back())));
  }
  return status;
}

Status read_snapshot(const fs::path& path, std::uint64_t config, TrainerState& state, ParameterSet& weights,
                     Optimizer::State& optimizer) {
  HADAL_ASSIGN_OR_RETURN(const Opened opened, open_snapshot(path, config));
  TrainerState read;
  std::int64_t indexer_steps = 0, other_steps = 0;
  try {
    const Json& json = opened.json;
    read.step = json.at("step").get<std::int64_t>();
    read.recent_losses = json.at("recent_losses").get<std::deque<double>>();
    read.anticipate_until = json.at("anticipate_until").get<std::int64_t>();
    read.rollbacks = json.at("rollbacks").get<std::int64_t>();
    read.last_spike = json.at("last_spike").get<std::int64_t>();
    read.best_validation = json.at("best_validation").get<double>();
    indexer_steps = json.at("indexer_steps").get<std::int64_t>();
    other_steps = json.at("other_steps").get<std::int64_t>();
  } catch (const Json::exception& error) {
    return fail(ErrorCode::corrupt, fmt::format("{}: {}", path.string(), error.what()));
  }
  for (const Array& array : opened.arrays) {
    if (!array.name.starts_with("routing ")) continue;
    auto& routing = read.routing.emplace_back(array.bytes.size() / sizeof(std::int32_t));
    if (!routing.empty())
      std::memcpy(routing.data(), array.bytes.data(), routing.size() * sizeof(std::int32_t));
  }
  HADAL_RETURN_IF_ERROR(copy_arrays(opened, path, arrays_of(weights, optimizer)));
  optimizer.indexer_steps = indexer_steps;
  optimizer.other_steps = other_steps;
  state = std::move(read);
  return {};
}

Status read_snapshot_weights(const fs::path& path, std::uint64_t config, ParameterSet& weights) {
  HADAL_ASSIGN_OR_RETURN(const Opened opened, open_snapshot(path, config));
  Arrays arrays;
  arrays.add_weights(weights);
  return copy_arrays(opened, path, arrays);
}

void prune_snapshots(const fs::path& run, std::int64_t keep) {
  const std::vector<std::int64_t> steps = list_snapshots(run);
  std::error_code ignored;
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < steps.size(); ++i)
    fs::remove(snapshot_path(run, steps[i]), ignored);
}

}  // namespace hadal
