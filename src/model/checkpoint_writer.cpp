#include "model/checkpoint_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/file_writer.h"
#include "base/readable.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;

using Sink = std::function<Status(std::span<const std::byte>)>;

// Large tensors first within a file: those whose size is a multiple of 64 bytes then all start at one too.
void order_for_alignment(std::vector<std::size_t>& order, std::span<const CheckpointTensor> tensors) {
  std::stable_partition(order.begin(), order.end(),
                        [&](std::size_t i) { return tensors[i].stored.bytes() % 64 == 0; });
}

std::vector<AnnouncedTensor> announce(std::span<const CheckpointTensor> tensors,
                                      std::span<const std::size_t> order) {
  std::vector<AnnouncedTensor> announced;
  for (const std::size_t i : order) announced.push_back(tensors[i].stored);
  return announced;
}

// Sends the bytes of the tensors of `order` to the sink, a bufferful at a time.
Status generate(std::span<const CheckpointTensor> tensors, std::span<const std::size_t> order,
                const FillTensor& fill, Buffer<std::byte>& buffer, ThreadPool& pool, const Sink& sink) {
  struct Piece {
    std::size_t tensor;
    std::int64_t begin, end;  // elements
    std::size_t offset;       // into the buffer
  };
  constexpr std::int64_t kPieceBytes = 64 << 10;
  std::vector<Piece> pieces;
  std::size_t used = 0;
  const auto flush = [&]() -> Status {
    pool.parallel_for(static_cast<std::int64_t>(pieces.size()), 1,
                      [&](std::int64_t first, std::int64_t last) {
                        for (std::int64_t i = first; i < last; ++i) {
                          const Piece& piece = pieces[static_cast<std::size_t>(i)];
                          fill(piece.tensor, piece.begin, piece.end, buffer.data() + piece.offset);
                        }
                      });
    HADAL_RETURN_IF_ERROR(sink(buffer.span().first(used)));
    pieces.clear();
    used = 0;
    return {};
  };
  for (const std::size_t tensor : order) {
    const AnnouncedTensor& stored = tensors[tensor].stored;
    const std::int64_t size = size_of(stored.dtype), elements = stored.bytes() / size;
    const std::int64_t step = kPieceBytes / size;
    for (std::int64_t begin = 0; begin < elements; begin += step) {
      const std::int64_t end = std::min(begin + step, elements);
      const auto bytes = static_cast<std::size_t>((end - begin) * size);
      if (used + bytes > buffer.size()) HADAL_RETURN_IF_ERROR(flush());
      pieces.push_back({tensor, begin, end, used});
      used += bytes;
    }
  }
  return flush();
}

constexpr std::size_t kBufferBytes = std::size_t{8} << 20;

bool is_checkpoint_file(std::string_view name) {
  return name == "config.json" || name == "model.safetensors" || name == "model.safetensors.index.json" ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

std::vector<fs::path> checkpoint_files(const fs::path& directory) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
    if (is_checkpoint_file(at->path().filename().string())) files.push_back(at->path());
  }
  return files;
}

// A directory for the unfinished files; whatever is left in it goes when the work ends.
class Staging {
 public:
  static Result<Staging> create(const fs::path& directory) {
    std::error_code error;
    const bool made = fs::create_directories(directory, error);
    if (error) {
      return fail(ErrorCode::io,
                  fmt::format("{}: cannot create the directory: {}", directory.string(), error.message()));
    }
    Staging staging(made ? directory : fs::path(), directory / fmt::format(".init.{}.part", ::getpid()));
    fs::create_directory(staging.path_, error);
    if (error) {
      return fail(ErrorCode::io, fmt::format("{}: cannot write into the directory: {}", directory.string(),
                                             error.message()));
    }
    return staging;
  }
  Staging(Staging&& other) noexcept
      : made_(std::exchange(other.made_, {})), path_(std::exchange(other.path_, {})) {}
  Staging& operator=(Staging&&) = delete;
  ~Staging() {
    std::error_code error;
    if (!path_.empty()) fs::remove_all(path_, error);
    if (!made_.empty()) fs::remove(made_, error);  // only when empty
  }

  const fs::path& path() const { return path_; }

 private:
  Staging(fs::path made, fs::path path) : made_(std::move(made)), path_(std::move(path)) {}

  fs::path made_;  // the model's directory, if it was made for this
  fs::path path_;
};

std::string index_json(std::span<const CheckpointTensor> tensors,
                       std::span<const std::vector<std::size_t>> shards, std::span<const std::string> names,
                       std::int64_t total) {
  std::string text = fmt::format("{{\n  \"metadata\": {{\"total_size\": {}}},\n  \"weight_map\": {{", total);
  const char* separator = "\n";
  for (std::size_t s = 0; s < shards.size(); ++s) {
    for (const std::size_t i : shards[s]) {
      fmt::format_to(std::back_inserter(text), "{}    \"{}\": \"{}\"", separator, tensors[i].stored.name,
                     names[s]);
      separator = ",\n";
    }
  }
  return text + "\n  }\n}\n";
}

}  // namespace

Result<CheckpointSummary> write_checkpoint(const Config& config, const fs::path& directory,
                                           std::span<const CheckpointTensor> tensors, const FillTensor& fill,
                                           const CheckpointOptions& options, ThreadPool& pool) {
  const std::vector<fs::path> old_files = checkpoint_files(directory);
  if (!old_files.empty() && !options.force) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: there already; --force replaces the checkpoint", old_files[0].string()));
  }
  if (options.shard_bytes < 1)
    return fail(ErrorCode::invalid_argument,
                fmt::format("shards of {} bytes: at least 1 is needed", options.shard_bytes));

  // The tensors, cut into shards; a weight and its scales stay together.
  std::vector<std::vector<std::size_t>> shards(1);
  CheckpointSummary summary;
  std::int64_t in_shard = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::int64_t bytes = tensors[i].stored.bytes();
    if (in_shard + bytes > options.shard_bytes && in_shard > 0 && !tensors[i].with_previous) {
      shards.emplace_back();
      in_shard = 0;
    }
    in_shard += bytes;
    summary.bytes += bytes;
    ++summary.tensors;
    shards.back().push_back(i);
  }
  if (shards.size() > 99999) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("shards of {} bytes make {} files, more than 99999; use larger ones",
                            options.shard_bytes, shards.size()));
  }
  for (std::size_t s = 0; s < shards.size(); ++s) {
    order_for_alignment(shards[s], tensors);
    summary.shards.push_back(shards.size() == 1
                                 ? "model.safetensors"
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size()));
  }

  HADAL_ASSIGN_OR_RETURN(const Staging staging, Staging::create(directory));
  std::error_code error;
  const fs::space_info space = fs::space(staging.path(), error);
  if (!error && space.available < static_cast<std::uintmax_t>(summary.bytes)) {
    return fail(
        ErrorCode::resource_exhausted,
        fmt::format("{}: the checkpoint takes {}B and {}B are free; use another disk, or fewer --layers or "
                    "--experts",
                    directory.string(), readable(summary.bytes),
                    readable(static_cast<double>(space.available))));
  }
  Buffer<std::byte> buffer = Buffer<std::byte>::uninitialised(kBufferBytes);
  std::int64_t done = 0;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    HADAL_ASSIGN_OR_RETURN(
        SafetensorsWriter writer,
        SafetensorsWriter::create(staging.path() / summary.shards[s], announce(tensors, shards[s])));
    const auto sink = [&](std::span<const std::byte> bytes) -> Status {
      HADAL_RETURN_IF_ERROR(writer.write(bytes));
      done += static_cast<std::int64_t>(bytes.size());
      if (options.progress && !options.progress(done, summary.bytes)) {
        return fail(ErrorCode::cancelled,
                    fmt::format("{}: stopped; nothing was changed there", directory.string()));
      }
      return {};
    };
    HADAL_RETURN_IF_ERROR(generate(tensors, shards[s], fill, buffer, pool, sink));
    HADAL_RETURN_IF_ERROR(writer.commit());
  }
  std::vector<std::string> names = {"config.json"};
  HADAL_RETURN_IF_ERROR(write_file(staging.path() / names[0], config_to_json(config)));
  names.insert(names.end(), summary.shards.begin(), summary.shards.end());
  if (shards.size() > 1) {
    names.emplace_back("model.safetensors.index.json");
    HADAL_RETURN_IF_ERROR(write_file(staging.path() / names.back(),
                                     index_json(tensors, shards, summary.shards, summary.bytes)));
  }

  for (const fs::path& old_file : old_files) fs::remove(old_file, error);
  for (const std::string& name : names) {
    fs::rename(staging.path() / name, directory / name, error);
    if (error) {
      return fail(ErrorCode::io, fmt::format("{}: cannot rename into place: {}", (directory / name).string(),
                                             error.message()));
    }
  }
  return summary;
}

Result<Buffer<std::byte>> checkpoint_image(std::span<const CheckpointTensor> tensors, const FillTensor& fill,
                                           ThreadPool& pool) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  order_for_alignment(order, tensors);
  const std::string header = safetensors_header(announce(tensors, order));
  std::int64_t bytes = 0;
  for (const CheckpointTensor& tensor : tensors) bytes += tensor.stored.bytes();
  const auto memory =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  if (static_cast<double>(bytes) > memory) {
    return fail(
        ErrorCode::resource_exhausted,
        fmt::format("random weights of {}B do not fit in this machine's {}B; use fewer layers or experts",
                    readable(bytes), readable(memory)));
  }
  Buffer<std::byte> image = Buffer<std::byte>::uninitialised(header.size() + static_cast<std::size_t>(bytes));
  std::memcpy(image.data(), header.data(), header.size());
  std::size_t at = header.size();
  Buffer<std::byte> buffer = Buffer<std::byte>::uninitialised(kBufferBytes);
  HADAL_RETURN_IF_ERROR(
      generate(tensors, order, fill, buffer, pool, [&](std::span<const std::byte> part) -> Status {
        std::memcpy(image.data() + at, part.data(), part.size());
        at += part.size();
        return {};
      }));
  HADAL_CHECK(at == image.size());
  return image;
}

}  // namespace hadal
