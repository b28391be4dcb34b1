// The recorded vectors of the official code: tests/data holds a copy, HADAL_REFERENCE names the full set.
#pragma once

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "formats/safetensors.h"

namespace hadal::test {

inline std::filesystem::path reference_directory() {
  if (const char* given = std::getenv("HADAL_REFERENCE"); given != nullptr) return given;
  return std::filesystem::path(HADAL_TEST_DATA) / "reference";
}

// One safetensors file of recorded tensors.
class GoldenFile {
 public:
  static GoldenFile open(const std::filesystem::path& path) {
    GoldenFile golden;
    auto file = MappedFile::open(path);
    if (!file) throw std::runtime_error(file.error().message());
    golden.file_ = std::move(*file);
    auto entries = parse_safetensors(golden.file_.bytes(), path.string());
    if (!entries) throw std::runtime_error(entries.error().message());
    golden.entries_ = std::move(*entries);
    return golden;
  }

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const TensorRef* find(const std::string& name) const {
    for (const auto& entry : entries_) {
      if (entry.name == name) return &entry.tensor;
    }
    return nullptr;
  }
  const TensorRef& at(const std::string& name) const {
    const TensorRef* tensor = find(name);
    if (tensor == nullptr) throw std::runtime_error("no golden tensor " + name);
    return *tensor;
  }
  template <class T>
  std::vector<T> values(const std::string& name) const {
    const TensorRef& tensor = at(name);
    if (size_of(tensor.dtype) != static_cast<std::int64_t>(sizeof(T)))
      throw std::runtime_error("dtype of " + name);
    std::vector<T> out(static_cast<std::size_t>(tensor.elements()));
    if (!out.empty()) std::memcpy(out.data(), tensor.data, out.size() * sizeof(T));
    return out;
  }
  std::vector<float> floats(const std::string& name) const { return values<float>(name); }

 private:
  MappedFile file_;
  std::vector<SafetensorsEntry> entries_;
};

}  // namespace hadal::test
