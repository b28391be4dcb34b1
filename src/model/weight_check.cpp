#include "model/weight_check.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tensor/finite.h"

namespace hadal {
namespace {

constexpr std::int64_t kCheckedPiece = std::int64_t{1} << 20;  // elements that one thread looks at in one go

// A tensor to look at, from the walk over the parameters.
struct Suspect {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  const std::byte* data = nullptr;
  std::uint8_t most_scale = 255;  // of scales

  std::int64_t elements() const { return TensorRef{dtype, shape, data}.elements(); }
  std::int64_t find(std::int64_t begin, std::int64_t end) const {
    const std::byte* from = data + begin * size_of(dtype);
    const std::int64_t at =
        dtype == DType::f8_e8m0
            ? first_scale_above(most_scale, reinterpret_cast<const std::uint8_t*>(from), end - begin)
            : first_not_finite(dtype, from, end - begin);
    return at < 0 ? -1 : begin + at;
  }
};

class CheckedWeights {
 public:
  explicit CheckedWeights(WeightCheck::Depth depth) : depth_(depth) {}

  void operator()(const Linear& w, const ParameterInfo& info) {
    if (w.weight == nullptr) return;
    if (w.quantised()) {
      suspects.push_back({scale_name(info.name), DType::f8_e8m0, scale_shape(w.format, w.out, w.in),
                          reinterpret_cast<const std::byte*>(w.scale),
                          w.format == Linear::Format::fp8 ? kMostScaleOfE4m3 : kMostScaleOfE2m1});
    }
    if (w.format == Linear::Format::fp4) return;
    if (info.expert >= 0 && depth_ != WeightCheck::Depth::all) return;
    suspects.push_back({info.name, dtype_of(w.format), info.shape, w.weight});
  }
  void operator()(const Vector& slot, const ParameterInfo& info) {
    suspects.push_back({info.name, DType::f32, info.shape, reinterpret_cast<const std::byte*>(slot.data())});
  }
  void operator()(const HashTable& /*slot*/, const ParameterInfo& /*info*/) {}

  std::vector<Suspect> suspects;

 private:
  static DType dtype_of(Linear::Format format) {
    switch (format) {
      case Linear::Format::f32:
        return DType::f32;
      case Linear::Format::f16:
        return DType::f16;
      case Linear::Format::bf16:
        return DType::bf16;
      case Linear::Format::fp8:
        return DType::f8_e4m3;
      case Linear::Format::fp4:
        return DType::i8;
    }
    return DType::f32;
  }
  WeightCheck::Depth depth_;
};

}  // namespace

Error not_finite(std::string_view name, DType dtype, const Shape& shape, const std::byte* data,
                 std::int64_t index) {
  Shape at(shape.size());
  for (std::size_t i = shape.size(); i-- > 0; index /= shape[i]) at[i] = index % shape[i];
  std::string bits;  // little-endian
  for (std::int64_t i = size_of(dtype); i-- > 0;)
    bits += fmt::format("{:02x}", std::to_integer<unsigned>(data[i]));
  const bool scale = dtype == DType::f8_e8m0 && bits != "ff";
  return {ErrorCode::corrupt,
          fmt::format("'{}' {} at [{}] ({} 0x{}); the file is damaged, or what wrote it had diverged: get it "
                      "again from its source",
                      name, scale ? "is a scale that makes its weights infinite" : "is not finite",
                      fmt::join(at, ", "), to_string(dtype), bits)};
}

Status check_weights(const Config& config, Weights& weights, const Checkpoint& checkpoint,
                     const WeightCheck& check) {
  if (check.depth == WeightCheck::Depth::none) return {};
  CheckedWeights found(check.depth);
  for_each_parameter(config, weights, found);

  // Pieces of one size, numbered through all suspects.
  std::vector<std::int64_t> first_piece = {0};
  for (const Suspect& suspect : found.suspects)
    first_piece.push_back(first_piece.back() + (suspect.elements() + kCheckedPiece - 1) / kCheckedPiece);
  // The lowest piece with such a value: the same whoever finds it.
  std::atomic<std::int64_t> worst{std::numeric_limits<std::int64_t>::max()};
  const auto suspect_of = [&](std::int64_t piece) {
    return static_cast<std::size_t>(std::upper_bound(first_piece.begin(), first_piece.end(), piece) -
                                    first_piece.begin() - 1);
  };
  const auto find = [&](std::int64_t piece) {
    const std::size_t s = suspect_of(piece);
    const Suspect& suspect = found.suspects[s];
    const std::int64_t begin = (piece - first_piece[s]) * kCheckedPiece;
    return suspect.find(begin, std::min(begin + kCheckedPiece, suspect.elements()));
  };
  const auto look = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      if (piece >= worst.load(std::memory_order_relaxed) || find(piece) < 0) continue;
      std::int64_t seen = worst.load();
      while (piece < seen && !worst.compare_exchange_weak(seen, piece)) {
      }
    }
  };
  if (check.pool != nullptr) {
    check.pool->parallel_for(first_piece.back(), 1, look);
  } else {
    look(0, first_piece.back());
  }
  if (worst.load() >= first_piece.back()) return {};

  const Suspect& suspect = found.suspects[suspect_of(worst.load())];
  const std::int64_t index = find(worst.load());
  // A vector was widened when it was bound; the file says what it holds there.
  const TensorRef* stored = checkpoint.find(suspect.name);
  Error error = not_finite(suspect.name, stored->dtype, suspect.shape,
                           suspect.dtype == stored->dtype ? suspect.data + index * size_of(suspect.dtype)
                                                          : stored->data + index * size_of(stored->dtype),
                           index);
  if (const auto place = checkpoint.place(stored->data))
    return tl::unexpected(std::move(error).with_context(checkpoint.files()[place->file].filename().string()));
  return tl::unexpected(std::move(error));
}

}  // namespace hadal
