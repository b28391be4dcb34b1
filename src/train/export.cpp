#include "train/export.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "model/init.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"
#include "train/optimizer.h"

namespace hadal {
namespace {

constexpr std::int64_t kFp4Block = 32, kFp8Block = 128;

// The bytes of one stored tensor.
using Bytes = std::vector<std::byte>;

template <class T, class Convert>
Bytes convert(std::span<const float> values, Convert&& one) {
  Bytes out(values.size() * sizeof(T));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const T code = one(values[i]);
    std::memcpy(out.data() + i * sizeof(T), &code, sizeof(T));
  }
  return out;
}

struct Quantised {
  Bytes codes, scales;
};

// FP4, one scale per 1x32: two codes a byte, the even one low.
Quantised to_fp4(std::span<const float> values) {
  Quantised out{Bytes(values.size() / 2), Bytes(values.size() / kFp4Block)};
  float block[kFp4Block];
  std::uint8_t codes[kFp4Block];
  for (std::size_t b = 0; b < out.scales.size(); ++b) {
    std::copy_n(values.data() + b * kFp4Block, kFp4Block, block);
    out.scales[b] = std::byte{ref::quantise_e2m1_block(block, kFp4Block, codes)};
    for (std::size_t i = 0; i < kFp4Block; i += 2)
      out.codes[(b * kFp4Block + i) / 2] = static_cast<std::byte>(codes[i] | codes[i + 1] << 4);
  }
  return out;
}

// FP8, one scale per 128x128.
Quantised to_fp8(std::span<const float> values, std::int64_t rows, std::int64_t columns) {
  const std::int64_t across = (columns + kFp8Block - 1) / kFp8Block,
                     down = (rows + kFp8Block - 1) / kFp8Block;
  Quantised out{Bytes(values.size()), Bytes(static_cast<std::size_t>(across * down))};
  for (std::int64_t block = 0; block < across * down; ++block) {
    const std::int64_t i0 = block / across * kFp8Block, j0 = block % across * kFp8Block;
    const std::int64_t i1 = std::min(rows, i0 + kFp8Block), j1 = std::min(columns, j0 + kFp8Block);
    float amax = 0;
    for (std::int64_t i = i0; i < i1; ++i)
      for (std::int64_t j = j0; j < j1; ++j)
        amax = std::max(amax, std::fabs(values[static_cast<std::size_t>(i * columns + j)]));
    const std::uint8_t scale = e8m0_scale(std::max(amax, 1e-4F), static_cast<float>(1.0 / 448));
    const float inverse = 1 / e8m0_to_f32(scale);
    out.scales[static_cast<std::size_t>(block)] = std::byte{scale};
    for (std::int64_t i = i0; i < i1; ++i) {
      for (std::int64_t j = j0; j < j1; ++j) {
        const auto at = static_cast<std::size_t>(i * columns + j);
        out.codes[at] = std::byte{f32_to_e4m3(values[at] * inverse)};
      }
    }
  }
  return out;
}

// Whether FP4 scales `scales` [rows, columns / 32], within one 128x128 block, all fit E4M3 under one scale:
// E4M3 spans 2^-9 (its least subnormal) to 448 = 1.75 * 2^8, FP4 0.5 to 6 = 1.5 * 2^2. With the largest FP4
// scale 2^s stored as 2^(s-6) E4M3 units (6 * 2^6 = 384), a block of scale 2^(s-k) needs units down to 0.5 *
// 2^(6-k) >= 2^-9: k at most 14. Blocks of zeros have no scale to speak of.
bool fits_fp8(std::span<const std::byte> scales, std::int64_t columns, std::int64_t i0, std::int64_t i1,
              std::int64_t j0, std::int64_t j1) {
  constexpr int kSpread = 14;
  int least = 255, most = 0;
  for (std::int64_t i = i0; i < i1; ++i) {
    for (std::int64_t j = j0 / kFp4Block; j < j1 / kFp4Block; ++j) {
      const int scale = std::to_integer<int>(scales[static_cast<std::size_t>(i * (columns / kFp4Block) + j)]);
      if (scale <= kLeastScale) continue;
      least = std::min(least, scale);
      most = std::max(most, scale);
    }
  }
  return most - least <= kSpread;
}

}  // namespace

Result<ExportSummary> export_checkpoint(const Config& model, const ParameterSet& weights,
                                        const std::filesystem::path& directory, StorageFormat format,
                                        const std::filesystem::path& tokenizer,
                                        const CheckpointOptions& options, ThreadPool& pool) {
  if (const Parameter* bad = first_not_finite(weights, pool); bad != nullptr)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} has a value that is not finite; export an earlier snapshot", bad->info.name));
  const Config config = config_for_format(model, format);
  // All of it encoded in memory: at most the size of the float32 weights, which are there too.
  std::vector<CheckpointTensor> tensors;
  std::vector<std::size_t> first_tensor;
  const auto parameters = weights.parameters();
  for (const Parameter& p : parameters) {
    first_tensor.push_back(tensors.size());
    for (StoredTensor& stored : stored_tensors(config, p.info, format)) {
      const bool with_previous = stored.dtype == DType::f8_e8m0;
      tensors.push_back({{std::move(stored.name), stored.dtype, std::move(stored.shape)}, with_previous});
    }
  }
  std::vector<Bytes> bytes(tensors.size());
  std::vector<std::int64_t> tiles(parameters.size()), beyond(parameters.size());
  const auto encode = [&](std::size_t i) {
    const Parameter& p = parameters[i];
    const std::size_t t = first_tensor[i];
    const auto values = weights[p];
    const auto quantised = [&](Quantised q) {
      bytes[t] = std::move(q.codes);
      bytes[t + 1] = std::move(q.scales);
    };
    switch (tensors[t].stored.dtype) {
      case DType::f32:
        bytes[t] = convert<float>(values, [](float x) { return x; });
        break;
      case DType::f16:
        bytes[t] = convert<std::uint16_t>(values, f32_to_f16);
        break;
      case DType::bf16:
        bytes[t] = convert<std::uint16_t>(values, f32_to_bf16);
        break;
      case DType::i64: {
        const auto ids = weights.table(p);
        bytes[t].resize(ids.size() * 8);
        for (std::size_t k = 0; k < ids.size(); ++k) {
          const std::int64_t id = ids[k];
          std::memcpy(bytes[t].data() + 8 * k, &id, 8);
        }
        break;
      }
      case DType::i8: {
        quantised(to_fp4(values));
        const std::int64_t rows = p.info.shape[0], columns = p.info.shape[1];
        for (std::int64_t i0 = 0; i0 < rows; i0 += kFp8Block) {
          for (std::int64_t j0 = 0; j0 < columns; j0 += kFp8Block) {
            ++tiles[i];
            beyond[i] += fits_fp8(bytes[t + 1], columns, i0, std::min(rows, i0 + kFp8Block), j0,
                                  std::min(columns, j0 + kFp8Block))
                             ? 0
                             : 1;
          }
        }
        break;
      }
      default:
        quantised(to_fp8(values, p.info.shape[0], p.info.shape[1]));
    }
  };
  pool.parallel_for(static_cast<std::int64_t>(parameters.size()), 1,
                    [&](std::int64_t begin, std::int64_t end) {
                      for (std::int64_t i = begin; i < end; ++i) encode(static_cast<std::size_t>(i));
                    });
  const FillTensor fill = [&](std::size_t tensor, std::int64_t begin, std::int64_t end, std::byte* out) {
    const std::int64_t size = size_of(tensors[tensor].stored.dtype);
    std::memcpy(out, bytes[tensor].data() + begin * size, static_cast<std::size_t>((end - begin) * size));
  };
  ExportSummary summary;
  HADAL_ASSIGN_OR_RETURN(summary.checkpoint,
                         write_checkpoint(config, directory, tensors, fill, options, pool));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    summary.fp4_tiles += tiles[i];
    summary.fp4_tiles_beyond_fp8 += beyond[i];
  }
  if (!tokenizer.empty()) {
    HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(tokenizer));
    HADAL_RETURN_IF_ERROR(write_file(directory / "tokenizer.json", text));
  }
  return summary;
}

}  // namespace hadal
