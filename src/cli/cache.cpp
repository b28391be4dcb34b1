// hadal cache: what lies in the directory of the prefix cache.
#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/directory.h"
#include "base/readable.h"
#include "cli/command.h"
#include "engine/cache_file.h"
#include "engine/cache_index.h"

namespace hadal::cli {
namespace {

struct CacheArguments {
  std::filesystem::path directory;
  bool json = false;
  std::int64_t bytes = 0;
};

struct Entry {
  std::filesystem::path path;
  std::uint64_t id = 0, parent = 0, last_used = 0;
  std::int64_t length = 0, bytes = 0;
  std::uint64_t model = 0;
  bool corrupt = false;
  std::string problem;  // or cannot be read just now
};

// The files, oldest use first; `whole`: every byte is checked.
Result<std::vector<Entry>> read_entries(const std::filesystem::path& directory, bool whole) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error))
    return fail(ErrorCode::not_found, fmt::format("{} is not a directory", directory.string()));
  std::map<std::uint64_t, std::uint64_t> last_used;
  if (std::filesystem::exists(directory / "index.sqlite", error)) {
    const auto index = CacheIndex::open(directory, /*writable=*/false);
    const Status read =
        index ? index->for_each_file([&](std::uint64_t id, std::uint64_t clock) { last_used[id] = clock; })
              : Status(tl::unexpected(index.error()));
    // It says no more than when files were used.
    if (!read)
      std::fputs(fmt::format("hadal: {}: {}\n", directory.string(), read.error().message()).c_str(), stderr);
  }
  std::vector<Entry> entries;
  HADAL_ASSIGN_OR_RETURN(const auto names, names_in(directory));
  for (const std::string& name : names) {
    Entry entry;
    entry.id = id_of_cache_file(name);
    if (entry.id == 0) continue;
    entry.path = directory / name;
    entry.bytes = static_cast<std::int64_t>(std::filesystem::file_size(entry.path, error));
    if (error) entry.bytes = 0;
    const auto opened = CacheFile::open(entry.path);
    if (opened) {
      const CacheFileHeader& h = opened->header();
      entry.parent = h.parent;
      entry.length = h.length;
      entry.model = h.model;
      if (const auto used = last_used.find(entry.id); used != last_used.end()) entry.last_used = used->second;
    }
    const Status right = !opened ? tl::unexpected(opened.error()) : whole ? opened->verify() : Status();
    if (!right) {
      entry.problem = right.error().message();
      entry.corrupt = right.error().code() == ErrorCode::corrupt;
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

Status list(const CacheArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const auto entries, read_entries(arguments.directory, false));
  print(entries, arguments.json);
  return {};
}

Status verify(const CacheArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const auto entries, read_entries(arguments.directory, true));
  print(entries, arguments.json);
  const auto broken =
      std::count_if(entries.begin(), entries.end(), [](const Entry& e) { return !e.problem.empty(); });
  if (broken == 0) return {};
  return fail(ErrorCode::corrupt, fmt::format("{} of {} files are broken; hadal cache prune removes them",
                                              broken, entries.size()));
}

// Broken files and what builds on them, then the files that were used longest ago, none before those that
// build on it.
Status prune(const CacheArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(auto entries, read_entries(arguments.directory, true));
  HADAL_ASSIGN_OR_RETURN(const DirectoryLock lock, DirectoryLock::take(arguments.directory));
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.length < b.length; });
  std::map<std::uint64_t, const Entry*> left;
  std::int64_t bytes = 0;
  for (const Entry& e : entries) {
    bytes += e.bytes;
    left[e.id] = &e;
  }
  const auto remove = [&](const Entry& e) -> Status {  // the index hears of it at the server's next start
    std::error_code error;
    if (!std::filesystem::remove(e.path, error) || error)
      return fail(ErrorCode::io, fmt::format("{}: cannot remove: {}", e.path.string(), error.message()));
    bytes -= e.bytes;
    left.erase(e.id);
    return {};
  };
  std::map<std::uint64_t, int> children;
  for (const Entry& e : entries) {  // parents first
    if (e.corrupt || (e.problem.empty() && e.parent != 0 && !left.contains(e.parent))) {
      HADAL_RETURN_IF_ERROR(remove(e));
    } else {
      ++children[e.parent];
    }
  }
  const auto later = [](const Entry* a, const Entry* b) {
    return std::pair(a->last_used, a->id) < std::pair(b->last_used, b->id);
  };
  std::set<const Entry*, decltype(later)> leaves(later);
  for (const auto& [id, e] : left) {
    if (children[id] == 0) leaves.insert(e);
  }
  while (bytes > arguments.bytes && !leaves.empty()) {
    const Entry* oldest = *leaves.begin();
    leaves.erase(leaves.begin());
    HADAL_RETURN_IF_ERROR(remove(*oldest));
    const auto parent = left.find(oldest->parent);
    if (--children[oldest->parent] == 0 && parent != left.end()) leaves.insert(parent->second);
  }
  std::puts(fmt::format("removed {} files; {} are left, {}B", entries.size() - left.size(), left.size(),
                        readable(bytes))
                .c_str());
  return {};
}

void add(CLI::App& parent, const std::string& name, const std::string& help, Outcome& outcome,
         Status (*work)(const CacheArguments&)) {
  auto* command = parent.add_subcommand(name, help);
  auto arguments = std::make_shared<CacheArguments>();
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
