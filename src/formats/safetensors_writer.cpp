#include "formats/safetensors_writer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/check.h"

namespace hadal {

std::string safetensors_header(std::span<const AnnouncedTensor> tensors) {
  // Tensor names are the model's own, so they need no escaping.
  std::string json = R"({"__metadata__":{"format":"pt"})";
  std::int64_t offset = 0;
  for (const AnnouncedTensor& tensor : tensors) {
    HADAL_CHECK(tensor.name.find_first_of("\"\\") == std::string::npos);
    fmt::format_to(std::back_inserter(json), R"(,"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                   tensor.name, to_string(tensor.dtype), fmt::join(tensor.shape, ","), offset,
                   offset + tensor.bytes());
    offset += tensor.bytes();
  }
  json += '}';
  while ((json.size() + 8) % 64 != 0) json += ' ';
  const std::uint64_t length = json.size();
  std::string header(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) header[i] = static_cast<char>((length >> (8 * i)) & 0xff);
  return header + json;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::filesystem::path& path,
                                                    std::vector<AnnouncedTensor> tensors) {
  HADAL_ASSIGN_OR_RETURN(FileWriter file, FileWriter::create(path));
  const std::string header = safetensors_header(tensors);
  HADAL_RETURN_IF_ERROR(file.write(header));
  std::uint64_t promised = header.size();
  for (const AnnouncedTensor& tensor : tensors) promised += static_cast<std::uint64_t>(tensor.bytes());
  return SafetensorsWriter(std::move(file), promised);
}

Status SafetensorsWriter::write(std::span<const std::byte> bytes) {
  HADAL_CHECK(file_.bytes_written() + bytes.size() <= promised_);
  return file_.write(bytes);
}

Status SafetensorsWriter::commit() {
  HADAL_CHECK(file_.bytes_written() == promised_);
  return file_.commit();
}

}  // namespace hadal
