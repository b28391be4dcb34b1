#include "formats/checkpoint.h"

#include <algorithm>
#include <functional>
#include <map>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <simdjson.h>

#include "formats/names.h"
#include "formats/safetensors.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

// The path to open for a shard, which must be a plain file of the directory. Hubs keep a snapshot as symbolic
// links into the sibling directory ../../blobs; a link to anywhere else is refused, so that an index cannot
// make hadal read other files of the machine.
Result<fs::path> locate_shard(const fs::path& directory, const std::string& file) {
  const auto bad = [&](std::string_view what) {
    return fail(ErrorCode::corrupt,
                fmt::format("{}: shard {} {}", (directory / kIndex).string(), quote_name(file), what));
  };
  if (file == "." || file == ".." || file.find('/') != std::string::npos || !plain_name(file)) {
    return bad("is not a plain file name in the model's directory");
  }
  std::error_code error;
  const fs::path path = directory / file;
  if (!fs::is_symlink(fs::symlink_status(path, error))) return path;
  const fs::path target = fs::canonical(path, error);
  if (error) return bad("is a symbolic link that leads nowhere");
  const fs::path home = fs::canonical(directory, error);
  const fs::path blobs = home.parent_path().parent_path() / "blobs";
  if (target.parent_path() == home || target.parent_path() == blobs) return target;
  return bad(fmt::format("is a symbolic link to {}, outside the model's directory", target.string()));
}

// Without an index: model.safetensors, or the only *.safetensors of the directory.
Result<fs::path> locate_single(const fs::path& directory) {
  std::error_code error;
  if (fs::exists(fs::symlink_status(directory / kSingle, error))) return directory / kSingle;
  std::vector<fs::path> found;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
    if (at->path().extension() == ".safetensors") found.push_back(at->path());
  }
  if (found.size() == 1) return found.front();
  return fail(ErrorCode::not_found,
              fmt::format("{}: there is neither {} nor {}, and {}", directory.string(), kSingle, kIndex,
                          found.empty() ? "no other *.safetensors" : "more than one *.safetensors"));
}

// File name -> the tensors that the index expects in it.
Result<std::map<std::string, std::vector<std::string>>> read_index(const fs::path& path) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(path, std::size_t{256} << 20));
  const auto bad = [&](std::string_view what) {
    return fail(ErrorCode::corrupt, fmt::format("{}: {}", path.string(), what));
  };
  simdjson::dom::parser parser;
  simdjson::dom::object root, weight_map;
  if (const auto error = parser.parse(text).get(root)) {
    return bad(fmt::format("not a JSON object ({})", simdjson::error_message(error)));
  }
  if (root["weight_map"].get(weight_map)) return bad("has no weight_map");
  std::map<std::string, std::vector<std::string>> files;
  std::unordered_set<std::string_view> seen;
  for (const auto field : weight_map) {
    std::string_view file;
    if (field.value.get(file))
      return bad(fmt::format("the file of tensor {} is not a string", quote_name(field.key)));
    if (!seen.insert(field.key).second)
      return bad(fmt::format("tensor {} is declared twice", quote_name(field.key)));
    files[std::string(file)].emplace_back(field.key);
  }
  return files;
}

}  // namespace

Status Checkpoint::add(std::span<const std::byte> bytes, const std::string& name) {
  HADAL_ASSIGN_OR_RETURN(auto entries, parse_safetensors(bytes, name));
  for (auto& [tensor_name, tensor] : entries) {
    total_bytes_ += tensor.bytes();
    const auto [at, inserted] = tensors_.emplace(std::move(tensor_name), std::move(tensor));
    if (!inserted)
      return fail(ErrorCode::corrupt,
                  fmt::format("{}: tensor '{}' is in another shard too", name, at->first));
    names_.push_back(at->first);
  }
  return {};
}

Result<Checkpoint> Checkpoint::from_bytes(Buffer<std::byte> bytes, const std::string& name) {
  Checkpoint checkpoint;
  checkpoint.memory_ = std::move(bytes);
  HADAL_RETURN_IF_ERROR(checkpoint.add(std::as_const(checkpoint.memory_).span(), name));
  return checkpoint;
}

Result<Checkpoint> Checkpoint::open(const fs::path& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    return fail(ErrorCode::not_found,
                fmt::format("{}: not a directory; a model is a directory with config.json and "
                            "*.safetensors",
                            directory.string()));
  }
  Checkpoint checkpoint;
  const auto map = [&](const fs::path& path, bool follow_symlinks) -> Status {
    HADAL_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(path, follow_symlinks));
    HADAL_RETURN_IF_ERROR(checkpoint.add(mapped.bytes(), path.string()));
    checkpoint.files_.push_back(std::move(mapped));
    checkpoint.paths_.push_back(path);
    return {};
  };
  if (!fs::exists(fs::symlink_status(directory / kIndex, error))) {
    HADAL_ASSIGN_OR_RETURN(const fs::path path, locate_single(directory));
    HADAL_RETURN_IF_ERROR(map(path, true));
    return checkpoint;
  }

  HADAL_ASSIGN_OR_RETURN(const auto files, read_index(directory / kIndex));
  std::size_t promised = 0;
  for (const auto& [file, names] : files) {
    HADAL_ASSIGN_OR_RETURN(const fs::path path, locate_shard(directory, file));
    const std::size_t before = checkpoint.names_.size();
    HADAL_RETURN_IF_ERROR(map(path, false));
    // Every tensor that the index places here must be here, and no other.
    std::vector<std::string_view> present(checkpoint.names_.begin() + static_cast<std::ptrdiff_t>(before),
                                          checkpoint.names_.end());
    std::vector<std::string_view> expected(names.begin(), names.end());
    std::sort(present.begin(), present.end());
    std::sort(expected.begin(), expected.end());
    const auto [in_file, in_index] =
        std::mismatch(present.begin(), present.end(), expected.begin(), expected.end());
    if (in_index != expected.end() && (in_file == present.end() || *in_index < *in_file)) {
      return fail(ErrorCode::corrupt, fmt::format("{}: tensor {} is not in it, though the index says so",
                                                  (directory / file).string(), quote_name(*in_index)));
    }
    if (in_file != present.end()) {
      return fail(ErrorCode::corrupt,
                  fmt::format("{}: tensor '{}' is not in the index", (directory / file).string(), *in_file));
    }
    promised += names.size();
  }
  if (promised == 0)
    return fail(ErrorCode::corrupt, fmt::format("{}: names no tensors", (directory / kIndex).string()));
  return checkpoint;
}

const TensorRef* Checkpoint::find(std::string_view name) const {
  const auto at = tensors_.find(std::string(name));
  return at == tensors_.end() ? nullptr : &at->second;
}

std::optional<Checkpoint::FilePlace> Checkpoint::place(const std::byte* data) const {
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const auto bytes = files_[i].bytes();
    if (!std::less<>()(data, bytes.data()) && std::less<>()(data, bytes.data() + bytes.size()))
      return FilePlace{i, static_cast<std::uint64_t>(data - bytes.data())};
  }
  return std::nullopt;
}

void Checkpoint::release_pages() const {
  for (const MappedFile& file : files_) file.release_pages();
}

}  // namespace hadal
