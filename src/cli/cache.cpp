// hadal cache: what lies in the directory of the prefix cache.
#include <algorithm>
#include <cstdio>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/readable.h"
#include "cli/command.h"
#include "engine/cache_file.h"
#include "engine/cache_index.h"

namespace hadal::cli {
namespace {

struct Arguments {
  std::filesystem::path directory;
  bool json = false;
  std::int64_t bytes = 0;
};

struct Entry {
  std::filesystem::path path;
  std::uint64_t id = 0, parent = 0, last_used = 0;
  std::int64_t length = 0, bytes = 0;
  std::uint64_t model = 0;
  std::string problem;
};

// The files, oldest use first; `whole`: every byte is checked.
Result<std::vector<Entry>> read_entries(const std::filesystem::path& directory, bool whole) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error))
    return fail(ErrorCode::not_found, fmt::format("{} is not a directory", directory.string()));
  std::map<std::uint64_t, std::uint64_t> last_used;
  if (std::filesystem::exists(directory / "index.sqlite", error)) {
    HADAL_ASSIGN_OR_RETURN(const CacheIndex index, CacheIndex::open(directory, /*writable=*/false));
    HADAL_RETURN_IF_ERROR(
        index.for_each_file([&](std::uint64_t id, std::uint64_t clock) { last_used[id] = clock; }));
  }
  std::vector<Entry> entries;
  for (const auto& file : std::filesystem::directory_iterator(directory, error)) {
    if (file.path().extension() != ".prefix") continue;
    Entry entry;
    entry.path = file.path();
    entry.bytes = static_cast<std::int64_t>(std::filesystem::file_size(file.path(), error));
    const auto opened = CacheFile::open(file.path());
    if (opened) {
      const CacheFileHeader& h = opened->header();
      entry.id = h.id;
      entry.parent = h.parent;
      entry.length = h.length;
      entry.model = h.model;
      if (const auto used = last_used.find(h.id); used != last_used.end()) entry.last_used = used->second;
      if (const Status right = whole ? opened->verify() : Status(); !right)
        entry.problem = right.error().message();
    } else {
      entry.problem = opened.error().message();
    }
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.last_used, a.id) < std::pair(b.last_used, b.id);
  });
  return entries;
}

void print(const std::vector<Entry>& entries, bool json) {
  if (json) {
    nlohmann::ordered_json out = nlohmann::ordered_json::array();
    for (const Entry& e : entries) {
      out.push_back({{"file", e.path.filename().string()},
                     {"tokens", e.length},
                     {"bytes", e.bytes},
                     {"parent", e.parent == 0 ? "" : fmt::format("{:016x}", e.parent)},
                     {"model", fmt::format("{:016x}", e.model)},
                     {"last_used", e.last_used},
                     {"problem", e.problem}});
    }
    std::puts(out.dump(1).c_str());
    return;
  }
  std::int64_t bytes = 0;
  for (const Entry& e : entries) {
    bytes += e.bytes;
    std::puts(fmt::format("{}  {:>9} tokens  {:>9}B  used {:>6}  {}", e.path.filename().string(), e.length,
                          readable(e.bytes), e.last_used, e.problem)
                  .c_str());
  }
  std::puts(fmt::format("{} files, {}B", entries.size(), readable(bytes)).c_str());
}

Status list(const Arguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const auto entries, read_entries(arguments.directory, false));
  print(entries, arguments.json);
  return {};
}

Status verify(const Arguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const auto entries, read_entries(arguments.directory, true));
  print(entries, arguments.json);
  const auto broken =
      std::count_if(entries.begin(), entries.end(), [](const Entry& e) { return !e.problem.empty(); });
  if (broken == 0) return {};
  return fail(ErrorCode::corrupt, fmt::format("{} of {} files are broken; hadal cache prune removes them",
                                              broken, entries.size()));
}

// Broken files first, then those that were used longest ago, none before the files that build on it.
Status prune(const Arguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(auto entries, read_entries(arguments.directory, true));
  HADAL_ASSIGN_OR_RETURN(CacheIndex index, CacheIndex::open(arguments.directory));
  std::int64_t bytes = 0;
  for (const Entry& e : entries) bytes += e.bytes;
  std::int64_t removed = 0;
  const auto remove = [&](const Entry& e) -> Status {
    std::error_code error;
    if (!std::filesystem::remove(e.path, error))
      return fail(ErrorCode::io, fmt::format("{}: cannot remove: {}", e.path.string(), error.message()));
    bytes -= e.bytes;
    ++removed;
    return e.id == 0 ? Status() : index.remove_file(e.id);
  };
  for (bool again = true; again;) {
    again = false;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const Entry& e = entries[i];
      const bool has_children = std::any_of(entries.begin(), entries.end(), [&](const Entry& other) {
        return other.parent == e.id && e.id != 0;
      });
      const bool orphan =
          e.parent != 0 && std::none_of(entries.begin(), entries.end(),
                                        [&](const Entry& other) { return other.id == e.parent; });
      const bool too_much = bytes > arguments.bytes && !has_children;
      if (e.problem.empty() && !orphan && !too_much) continue;
      HADAL_RETURN_IF_ERROR(remove(e));
      entries.erase(entries.begin() + static_cast<std::ptrdiff_t>(i));
      again = true;
      break;
    }
  }
  std::puts(
      fmt::format("removed {} files; {} are left, {}B", removed, entries.size(), readable(bytes)).c_str());
  return {};
}

void add(CLI::App& parent, const std::string& name, const std::string& help, Outcome& outcome,
         Status (*work)(const Arguments&)) {
  auto* command = parent.add_subcommand(name, help);
  auto arguments = std::make_shared<Arguments>();
  command->add_option("DIR", arguments->directory, "The --cache-dir of hadal serve")->required();
  if (name == "prune") {
    command->add_option("--size", arguments->bytes, "Bytes that may stay; 0 removes everything")
        ->transform(CLI::AsSizeValue(false))
        ->required();
  } else {
    command->add_flag("--json", arguments->json, "As JSON");
  }
  command->callback([arguments, &outcome, work] {
    if (const Status done = work(*arguments); !done) outcome.exit_code = report(done.error());
  });
}

}  // namespace

void register_cache(CLI::App& app, Outcome& outcome) {
  auto* command = app.add_subcommand("cache", "The prefix cache on disk");
  command->require_subcommand(1);
  add(*command, "list", "What is there", outcome, list);
  add(*command, "verify", "Checks every byte", outcome, verify);
  add(*command, "prune", "Removes what is broken, and the oldest until it fits (no server may run on it)",
      outcome, prune);
  command->footer("Example: hadal cache list ~/.cache/hadal");
}

}  // namespace hadal::cli
