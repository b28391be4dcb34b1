// Writes a safetensors file as a stream: the header first, from what was announced, then the tensors' bytes
// in the same order, so memory stays bounded whatever the size of the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <hadal/error.h>

#include "base/buffer.h"
#include "base/file_writer.h"
#include "tensor/tensor_ref.h"

namespace hadal {

struct AnnouncedTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;

  std::int64_t bytes() const { return TensorRef{dtype, shape, nullptr}.bytes(); }
};

// The length field and the header of a file of these tensors, in this order, without holes; padded with
// spaces so that the data starts at a multiple of 64 bytes.
std::string safetensors_header(std::span<const AnnouncedTensor> tensors);

class SafetensorsWriter {
 public:
  // Errors: io, resource_exhausted (disk full).
  static Result<SafetensorsWriter> create(const std::filesystem::path& path,
                                          std::vector<AnnouncedTensor> tensors);

  // The next bytes of the file's data, in pieces of any size.
  Status write(std::span<const std::byte> bytes);
  // All announced bytes must have been written; the file appears under its name only now.
  Status commit();

 private:
  SafetensorsWriter(FileWriter file, std::uint64_t promised) : file_(std::move(file)), promised_(promised) {}

  FileWriter file_;
  std::uint64_t promised_;
};

}  // namespace hadal
