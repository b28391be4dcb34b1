#include "train/snapshot.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
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

constexpr std::array<char, 8> kSnapshotMagic = {'H', 'A', 'D', 'A', 'L', 'S', 'N', 'P'};
constexpr std::uint32_t kSnapshotVersion = 1;
constexpr std::size_t kSnapshotAlign = 64;

struct SnapshotHeader {
  std::array<char, 8> magic = kSnapshotMagic;
  std::uint32_t version = kSnapshotVersion;
  std::uint32_t json_bytes = 0;
  std::uint64_t json_hash = 0;  // XXH3
};
static_assert(sizeof(SnapshotHeader) == 24);

// An array of a file.
struct Array {
  std::string name;
  std::span<const std::byte> bytes;
};

// An array in memory. Of several ranks not everyone has all of it; `shards`, ascending, say in float32
// numbers what one rank alone has.
struct Place {
  std::string name;
  std::span<std::byte> bytes;
  std::span<const Shard> shards = {};
};

constexpr int kEveryone = -1;

// visit(first byte, bytes, rank that has them) for all pieces of a place, ascending.
template <class Visit>
void for_each_piece(const Place& place, Visit&& visit) {
  std::size_t at = 0;
  for (const Shard& s : place.shards) {
    const auto begin = static_cast<std::size_t>(s.offset) * sizeof(float),
               size = static_cast<std::size_t>(s.size) * sizeof(float);
    if (begin > at) visit(at, begin - at, kEveryone);
    if (size > 0) visit(begin, size, s.owner);
    at = begin + size;
  }
  if (place.bytes.size() > at) visit(at, place.bytes.size() - at, kEveryone);
}

class RunningHash {
 public:
  RunningHash() { XXH3_64bits_reset(state_.get()); }
  void update(std::span<const std::byte> bytes) {
    XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
  }
  std::uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_{XXH3_createState()};
};

std::uint64_t hash_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}
std::size_t round_up(std::size_t n) {
  return (n + kSnapshotAlign - 1) / kSnapshotAlign * kSnapshotAlign;
}

// Where the arrays of a snapshot go, or come from.
struct Places {
  std::vector<Place> list;

  template <class T>
  void add(std::string name, std::span<T> values, std::span<const Shard> shards = {}) {
    list.push_back({std::move(name), std::as_writable_bytes(values), shards});
  }
  void add_weights(ParameterSet& weights, std::span<const Shard> spread) {
    add("weights", weights.values(), spread);
    for (const Parameter& p : weights.parameters())
      if (p.info.role == Role::hash_table) add("table " + p.info.name, weights.table(p));
  }
};

// All that stands before the arrays; its size does not depend on the checksums.
std::string header_of(Json json, std::span<const Place> places, std::span<const std::uint64_t> checksums) {
  for (std::size_t i = 0; i < places.size(); ++i) {
    json["arrays"].push_back({{"name", places[i].name},
                              {"bytes", places[i].bytes.size()},
                              {"xxh3", fmt::format("{:016x}", checksums[i])}});
  }
  std::string text = json.dump();
  // Spaces, so that the arrays start at a multiple of 64 bytes.
  text.resize(round_up(sizeof(SnapshotHeader) + text.size()) - sizeof(SnapshotHeader), ' ');
  SnapshotHeader header;
  header.json_bytes = static_cast<std::uint32_t>(text.size());
  header.json_hash = XXH3_64bits(text.data(), text.size());
  std::string bytes(sizeof(header), '\0');
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes + text;
}

// The first rank writes, piece by piece, and gets what others alone have when its turn comes: nobody needs
// memory for all of it. What others send is taken after an error too, of which they do not know yet.
Status write_places(const fs::path& path, const Json& json, std::span<const Place> places,
                    Communicator& ranks) {
  const bool writes = ranks.rank() == 0;
  std::optional<FileWriter> writer;
  Status status;
  const auto write = [&](auto bytes) {
    if (status) status = writer->write(bytes);
  };
  std::vector<std::uint64_t> checksums(places.size());
  if (writes) {
    auto created = FileWriter::create(path);
    if (created) {
      writer.emplace(std::move(*created));
    } else {
      status = tl::unexpected(created.error());
    }
    write(std::string_view(header_of(json, places, checksums)));
  }
  constexpr std::array<std::byte, kSnapshotAlign> kZeros{};
  std::vector<std::byte> received;
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Place& place = places[i];
    RunningHash checksum;
    for_each_piece(place, [&](std::size_t begin, std::size_t size, int owner) {
      std::span<const std::byte> piece = place.bytes.subspan(begin, size);
      if (owner > 0) {
        if (writes) received.resize(size);
        ranks.to_first(owner, piece, received);
        piece = received;
      }
      if (!writes) return;
      checksum.update(piece);
      write(piece);
    });
    checksums[i] = checksum.digest();
    if (writes) write(std::span(kZeros).first(round_up(place.bytes.size()) - place.bytes.size()));
  }
  if (!writes) return {};
  HADAL_RETURN_IF_ERROR(status);
  HADAL_RETURN_IF_ERROR(writer->overwrite(0, header_of(json, places, checksums)));
  return writer->commit();
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
  SnapshotHeader header;
  if (bytes.size() < sizeof(header)) return corrupt("too short for a snapshot");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kSnapshotMagic) return corrupt("not a snapshot");
  if (header.version != kSnapshotVersion)
    return fail(ErrorCode::unsupported, fmt::format("{}: version {} of the format, this hadal reads {}",
                                                    path.string(), header.version, kSnapshotVersion));
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

// To a rank what it has.
Status copy_arrays(const Opened& opened, const fs::path& path, std::span<const Place> wanted, int rank) {
  std::vector<const Array*> sources;
  for (const Place& place : wanted) {
    const auto found = std::find_if(opened.arrays.begin(), opened.arrays.end(),
                                    [&](const Array& array) { return array.name == place.name; });
    if (found == opened.arrays.end() || found->bytes.size() != place.bytes.size()) {
      return fail(ErrorCode::corrupt, fmt::format("{}: no array \"{}\" of {} bytes", path.string(),
                                                  place.name, place.bytes.size()));
    }
    sources.push_back(&*found);
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    for_each_piece(wanted[i], [&](std::size_t begin, std::size_t size, int owner) {
      if (owner == kEveryone || owner == rank)
        std::memcpy(wanted[i].bytes.data() + begin, sources[i]->bytes.data() + begin, size);
    });
  }
  return {};
}

Places places_of(ParameterSet& weights, Optimizer::State& optimizer, const Ownership& owned) {
  Places places;
  places.add_weights(weights, owned.spread);
  places.add("first moments", optimizer.first.values(), owned.parameters);
  places.add("second moments", optimizer.second.span(), owned.second);
  return places;
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
                      const ParameterSet& weights, const Optimizer::State& optimizer, const Ownership& owned,
                      Communicator& ranks) {
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
  Places places =
      places_of(const_cast<ParameterSet&>(weights), const_cast<Optimizer::State&>(optimizer), owned);
  for (std::size_t i = 0; i < state.routing.size(); ++i) {
    const std::span<const std::int32_t> routing = state.routing[i];
    places.add(fmt::format("routing {}", i),
               std::span(const_cast<std::int32_t*>(routing.data()), routing.size()));
  }
  if (ranks.rank() == 0) {
    std::error_code ignored;  // then there is no file to be made there, which says why
    fs::create_directories(run / "snapshots", ignored);
  }
  Status status = write_places(snapshot_path(run, state.step), json, places.list, ranks);
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
                     Optimizer::State& optimizer, const Ownership& owned, int rank) {
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
  HADAL_RETURN_IF_ERROR(copy_arrays(opened, path, places_of(weights, optimizer, owned).list, rank));
  optimizer.indexer_steps = indexer_steps;
  optimizer.other_steps = other_steps;
  state = std::move(read);
  return {};
}

Status read_snapshot_weights(const fs::path& path, std::uint64_t config, ParameterSet& weights) {
  HADAL_ASSIGN_OR_RETURN(const Opened opened, open_snapshot(path, config));
  Places places;
  places.add_weights(weights, {});
  return copy_arrays(opened, path, places.list, 0);
}

void prune_snapshots(const fs::path& run, std::int64_t keep) {
  const std::vector<std::int64_t> steps = list_snapshots(run);
  std::error_code ignored;
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < steps.size(); ++i)
    fs::remove(snapshot_path(run, steps[i]), ignored);
}

}  // namespace hadal
