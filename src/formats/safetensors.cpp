#include "formats/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <simdjson.h>

#include "formats/names.h"

namespace hadal {
namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr std::size_t kMaxRank = 8;

// Reads the header of one file; errors name the file and the tensor.
class HeaderReader {
 public:
  HeaderReader(std::span<const std::byte> bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  Result<std::vector<SafetensorsEntry>> read() {
    if (bytes_.size() < 8)
      return bad(fmt::format("{} bytes are too few for a safetensors file", bytes_.size()));
    std::uint64_t length = 0;
    std::memcpy(&length, bytes_.data(), 8);
    if (length > kMaxHeader)
      return bad(fmt::format("a header of {} bytes; more than 100 MB is not accepted", length));
    if (length > bytes_.size() - 8) {
      return bad(fmt::format("a header of {} bytes in a file of {}; the file is truncated or not safetensors",
                             length, bytes_.size()));
    }
    data_ = bytes_.subspan(8 + static_cast<std::size_t>(length));

    simdjson::dom::parser parser;
    const simdjson::padded_string json(reinterpret_cast<const char*>(bytes_.data()) + 8,
                                       static_cast<std::size_t>(length));
    simdjson::dom::object header;
    if (const auto error = parser.parse(json).get(header)) {
      return bad(fmt::format("the header is not a JSON object ({})", simdjson::error_message(error)));
    }
    std::vector<SafetensorsEntry> entries;
    std::unordered_set<std::string_view> seen;
    for (const auto field : header) {
      if (field.key == "__metadata__") continue;
      if (!plain_name(field.key)) {
        return bad(fmt::format("tensor {}: its name is empty, longer than {} bytes or has control characters",
                               quote_name(field.key), kMaxTensorName));
      }
      if (!seen.insert(field.key).second)
        return bad(fmt::format("tensor {} is declared twice", quote_name(field.key)));
      HADAL_ASSIGN_OR_RETURN(TensorRef tensor, read_tensor(field.key, field.value));
      entries.push_back({std::string(field.key), std::move(tensor)});
    }
    // An empty tensor stands before the one that begins where it does.
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
      return std::pair(a.tensor.data, a.tensor.bytes()) < std::pair(b.tensor.data, b.tensor.bytes());
    });
    HADAL_RETURN_IF_ERROR(check_cover(entries));
    return entries;
  }

 private:
  tl::unexpected<Error> bad(const std::string& what, ErrorCode code = ErrorCode::corrupt) const {
    return fail(code, fmt::format("{}: {}", name_, what));
  }

  Result<TensorRef> read_tensor(std::string_view name, simdjson::dom::element value) const {
    const auto wrong = [&](std::string_view what) {
      return bad(fmt::format("tensor {}: {}", quote_name(name), what));
    };
    std::string_view dtype_name;
    if (value["dtype"].get(dtype_name)) return wrong("no dtype");
    const auto dtype = dtype_from_string(dtype_name);
    if (!dtype) {
      return bad(fmt::format("tensor {} has dtype {}, which no DeepSeek-V4 checkpoint uses", quote_name(name),
                             quote_name(dtype_name)),
                 ErrorCode::unsupported);
    }
    TensorRef tensor;
    tensor.dtype = *dtype;
    simdjson::dom::array shape;
    if (value["shape"].get(shape)) return wrong("no shape");
    // The whole must fit in the file, so a product that leaves 2^62 is wrong whatever follows.
    constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 62;
    std::uint64_t elements = 1;
    bool empty = false;
    for (const auto item : shape) {
      std::uint64_t dim = 0;
      if (item.get(dim)) return wrong("a dimension is not a non-negative integer");
      if (tensor.shape.size() == kMaxRank) return wrong("more than 8 dimensions");
      if (dim > kMaxElements || (dim != 0 && elements > kMaxElements / dim))
        return wrong("its shape overflows");
      empty = empty || dim == 0;
      elements *= std::max<std::uint64_t>(dim, 1);
      tensor.shape.push_back(static_cast<std::int64_t>(dim));
    }
    if (empty) elements = 0;

    simdjson::dom::array offsets;
    std::uint64_t begin = 0, end = 0;
    if (value["data_offsets"].get(offsets) || offsets.size() != 2 || offsets.at(0).get(begin) ||
        offsets.at(1).get(end)) {
      return wrong("data_offsets is not a pair of non-negative integers");
    }
    if (begin > end || end > data_.size()) {
      return wrong(fmt::format(
          "bytes {} to {} lie outside the file's {} bytes of data; the file is truncated or damaged", begin,
          end, data_.size()));
    }
    const auto size = static_cast<std::uint64_t>(size_of(*dtype));
    if (elements > std::numeric_limits<std::uint64_t>::max() / size || elements * size != end - begin) {
      return wrong(fmt::format("{} of shape {} does not take the {} bytes that its offsets span", dtype_name,
                               to_string(tensor.shape), end - begin));
    }
    tensor.data = data_.data() + begin;
    return tensor;
  }

  // As the format demands: the tensors cover the data from end to end, without holes or overlaps.
  Status check_cover(const std::vector<SafetensorsEntry>& entries) const {
    const std::byte* at = data_.data();
    for (const auto& [name, tensor] : entries) {
      if (tensor.data != at) {
        return bad(fmt::format("tensor {} {} the one before it", quote_name(name),
                               tensor.data < at ? "overlaps" : "leaves a hole behind"));
      }
      at += tensor.bytes();
    }
    if (at != data_.data() + data_.size()) {
      return bad(fmt::format("{} bytes at the end belong to no tensor", data_.data() + data_.size() - at));
    }
    return {};
  }

  std::span<const std::byte> bytes_;
  std::string_view name_;
  std::span<const std::byte> data_;
};

}  // namespace

Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> bytes,
                                                        std::string_view name) {
  return HeaderReader(bytes, name).read();
}

}  // namespace hadal
