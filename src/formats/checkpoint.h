// The tensors of a model directory, memory-mapped: model.safetensors, or the shards that
// model.safetensors.index.json names (docs/formats.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <hadal/error.h>

#include "base/buffer.h"
#include "base/mapped_file.h"
#include "tensor/tensor_ref.h"

namespace hadal {

class Checkpoint {
 public:
  static Result<Checkpoint> open(const std::filesystem::path& directory);
  // One safetensors image in memory, which the checkpoint keeps.
  static Result<Checkpoint> from_bytes(Buffer<std::byte> bytes, const std::string& name);

  const TensorRef* find(std::string_view name) const;                    // null if there is none
  const std::vector<std::string_view>& names() const { return names_; }  // in file order
  std::int64_t tensor_count() const { return static_cast<std::int64_t>(names_.size()); }
  std::int64_t total_bytes() const { return total_bytes_; }  // of the tensors, without headers

  // Where a tensor's bytes are on disk: byte `offset` of files()[file]. Nothing for a checkpoint in memory.
  struct FilePlace {
    std::size_t file = 0;
    std::uint64_t offset = 0;
  };
  std::optional<FilePlace> place(const std::byte* data) const;
  const std::vector<std::filesystem::path>& files() const { return paths_; }
  // Takes what was touched of the mapped files out of this process's memory.
  void release_pages() const;

 private:
  Status add(std::span<const std::byte> bytes, const std::string& name);

  std::vector<MappedFile> files_;
  std::vector<std::filesystem::path> paths_;  // of files_
  Buffer<std::byte> memory_;
  std::unordered_map<std::string, TensorRef> tensors_;
  std::vector<std::string_view> names_;  // into the keys of tensors_
  std::int64_t total_bytes_ = 0;
};

}  // namespace hadal
