#include "model/init.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <span>

#include <xxhash.h>

#include "base/check.h"
#include "base/rng.h"
#include "model/checkpoint_writer.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

// The laws of the values ---------------------------------------------------------------------------------

// x with P(N(0,1) < x) = p, by bisection: made once per checkpoint for a few thousand p.
double normal_quantile(double p) {
  double low = -9, high = 9;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle * std::sqrt(0.5)) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

// 16 random bits to a draw of unit variance: the normal distribution's inverse CDF as 4096 straight pieces,
// the outermost ones ending at 3.84 standard deviations. 16 kB, so it stays in the first-level cache.
class NormalTable {
 public:
  NormalTable() {
    std::array<double, kPieces + 1> nodes{};
    for (int k = 0; k <= kPieces; ++k) {
      nodes[static_cast<std::size_t>(k)] =
          normal_quantile(std::clamp(static_cast<double>(k) / kPieces, 0.25 / kPieces, 1 - 0.25 / kPieces));
    }
    double variance = 0;  // of a piece from a to b: (a^2 + ab + b^2) / 3
    for (std::size_t k = 0; k < kPieces; ++k) {
      variance += (nodes[k] * nodes[k] + nodes[k] * nodes[k + 1] + nodes[k + 1] * nodes[k + 1]) / 3 / kPieces;
    }
    for (std::size_t k = 0; k <= kPieces; ++k) nodes_[k] = static_cast<float>(nodes[k] / std::sqrt(variance));
  }
  float operator()(std::uint32_t bits16) const {
    const std::uint32_t piece = bits16 >> 4;
    const float along = (static_cast<float>(bits16 & 15) + 0.5F) * (1.0F / 16);
    return nodes_[piece] + (nodes_[piece + 1] - nodes_[piece]) * along;
  }

 private:
  static constexpr int kPieces = 4096;
  std::array<float, kPieces + 1> nodes_;
};

// A random byte to a code of the FP8 or FP4 grid, and the exponent of the block scales, such that
// code value * 2^(exponent + j), j uniform in {-1, 0, 1}, has the wanted standard deviation.
struct CodeTable {
  std::array<std::uint8_t, 256> codes{};
  int exponent = 0;
};

CodeTable make_code_table(Linear::Format format, std::int64_t fan_in) {
  // The codes' own deviation is kept where the grid has both resolution and room: about 1.4 to 2.8 of E2M1's
  // 6, about 16 to 32 of E4M3's 448.
  const bool fp4 = format == Linear::Format::fp4;
  const double block_rms = std::sqrt((0.25 + 1 + 4) / 3);
  const double wanted = 1 / std::sqrt(static_cast<double>(fan_in)) / block_rms;
  const double lowest = fp4 ? std::sqrt(2.0) : 16;
  CodeTable table;
  table.exponent = static_cast<int>(std::floor(std::log2(wanted / lowest)));
  const double deviation = std::ldexp(wanted, -table.exponent);  // in [lowest, 2 lowest)
  // Rounding to the grid changes the deviation, in steps as codes change; the nearest step is within 1.2 %.
  std::array<double, 256> quantiles{};
  for (int i = 0; i < 256; ++i) quantiles[static_cast<std::size_t>(i)] = normal_quantile((i + 0.5) / 256);
  double nearest = HUGE_VAL;
  for (double width = 0.9 * deviation; width < 1.15 * deviation; width += 0.001 * deviation) {
    std::array<std::uint8_t, 256> codes{};
    double sum = 0;
    for (std::size_t i = 0; i < 256; ++i) {
      const auto x = static_cast<float>(width * quantiles[i]);
      codes[i] = fp4 ? f32_to_e2m1(x) : f32_to_e4m3(x);
      const double value = fp4 ? e2m1_to_f32(codes[i]) : e4m3_to_f32(codes[i]);
      sum += value * value;
    }
    const double distance = std::fabs(std::sqrt(sum / 256) - deviation);
    if (distance < nearest) {
      nearest = distance;
      table.codes = codes;
    }
  }
  return table;
}

enum class Law : std::uint8_t { normal, fp4_codes, fp8_codes, block_scales, expert_ids };

// One tensor of the file and how its elements are drawn.
struct Drawn {
  AnnouncedTensor tensor;
  Law law = Law::normal;
  float mean = 0, deviation = 0;     // normal
  const CodeTable* codes = nullptr;  // codes and scales
  std::int64_t n_experts = 0;        // expert_ids: rows of distinct ids below this
  std::uint64_t stream = 0;
};

// The random 64-bit words of one tensor: the output function of SplitMix64 (Steele, Lea, Flood: Fast
// splittable pseudorandom number generators; OOPSLA 2014) at a place of its sequence that Philox chooses from
// seed and name. Counter-based as Philox itself, in a tenth of the time.
class RandomWords {
 public:
  RandomWords(std::uint64_t seed, std::uint64_t stream) {
    const auto block = Philox(seed, stream).block(0);
    start_ = std::uint64_t{block[0]} << 32 | block[1];
  }
  std::uint64_t operator[](std::int64_t i) const {
    std::uint64_t z = start_ + static_cast<std::uint64_t>(i + 1) * 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t start_ = 0;
};

// What is common to all tensors of one checkpoint.
class Generator {
 public:
  Generator(std::uint64_t seed) : seed_(seed) {}

  std::vector<Drawn> plan(const Config& config, StorageFormat format) {
    std::vector<Drawn> tensors;
    Weights slots;
    for_each_parameter(config, slots, [&](auto& /*slot*/, const ParameterInfo& info) {
      for (StoredTensor& stored : stored_tensors(config, info, format))
        tensors.push_back(draw(config, info, std::move(stored)));
    });
    return tensors;
  }

  // Elements [begin, end) of a tensor, as they lie in the file. `begin` is a multiple of 8.
  void fill(const Drawn& drawn, std::int64_t begin, std::int64_t end, std::byte* out) const;

 private:
  Drawn draw(const Config& config, const ParameterInfo& info, StoredTensor stored);
  const CodeTable* codes(Linear::Format format, std::int64_t fan_in) {
    auto& table = tables_[{format, fan_in}];
    if (table == nullptr) table = std::make_unique<CodeTable>(make_code_table(format, fan_in));
    return table.get();
  }

  std::uint64_t seed_;
  NormalTable normal_;
  std::map<std::pair<Linear::Format, std::int64_t>, std::unique_ptr<CodeTable>> tables_;
};

Drawn Generator::draw(const Config& config, const ParameterInfo& info, StoredTensor stored) {
  Drawn drawn;
  drawn.stream = XXH3_64bits(stored.name.data(), stored.name.size());
  drawn.tensor = {std::move(stored.name), stored.dtype, std::move(stored.shape)};
  const std::int64_t fan_in = info.shape.back();
  const auto normal = [&](float mean, float deviation) {
    drawn.law = Law::normal;
    drawn.mean = mean;
    drawn.deviation = deviation;
  };
  switch (info.role) {
    case Role::hash_table:
      drawn.law = Law::expert_ids;
      drawn.n_experts = config.n_routed_experts;
      return drawn;
    case Role::embedding:
      normal(0, 1);
      break;
    case Role::norm:
      normal(1, 0.1F);
      break;
    case Role::router_bias:
      normal(0, 0.1F);
      break;
    case Role::position_bias:
    case Role::hc_base:
      normal(0, 0.3F);
      break;
    case Role::attention_sink:
      normal(0, 0.5F);
      break;
    case Role::hc_scale:
      normal(0.5F, 0.1F);
      break;
    case Role::head:
    case Role::attention_projection:
    case Role::mtp_projection:
    case Role::expert:
    case Role::shared_expert:
    case Role::compressor_projection:
    case Role::index_weights:
    case Role::router:
    case Role::hc_mixer:
      normal(0, 1 / std::sqrt(static_cast<float>(fan_in)));
      break;
  }
  const bool routed = info.role == Role::expert;
  const Linear::Format format = routed ? config.expert_format : config.dense_format;
  if (drawn.tensor.dtype == DType::f8_e4m3 || drawn.tensor.dtype == DType::i8) {
    drawn.law = drawn.tensor.dtype == DType::i8 ? Law::fp4_codes : Law::fp8_codes;
    drawn.codes = codes(format, fan_in);
  } else if (drawn.tensor.dtype == DType::f8_e8m0 || drawn.tensor.name.ends_with("weight_scale_inv")) {
    drawn.law = Law::block_scales;
    drawn.codes = codes(format, fan_in);
  }
  return drawn;
}

// Distinct ids below n, the `row`-th set of them.
void distinct_ids(const RandomWords& random, std::int64_t row, std::int64_t n, std::span<std::int64_t> ids) {
  std::vector<std::int64_t> sorted;
  const auto k = static_cast<std::int64_t>(ids.size());
  for (std::int64_t i = 0; i < k; ++i) {
    // The id-th of the n - i ids that are still free.
    auto id =
        static_cast<std::int64_t>(((random[row * k + i] >> 32) * static_cast<std::uint64_t>(n - i)) >> 32);
    std::size_t at = 0;
    for (; at < sorted.size() && sorted[at] <= id; ++at) ++id;
    sorted.insert(sorted.begin() + static_cast<std::ptrdiff_t>(at), id);
    ids[static_cast<std::size_t>(i)] = id;
  }
}

std::uint32_t byte_of(std::uint64_t word, std::size_t i) {
  return static_cast<std::uint32_t>(word >> (8 * i)) & 0xff;
}

// Fills [begin, end) of a tensor by groups of kGroup elements, each from one call make(group) that returns
// them; the last group may be cut. `begin` is a multiple of kGroup.
template <std::size_t kGroup, class Make>
void fill_groups(std::int64_t begin, std::int64_t end, std::byte* out, const Make& make) {
  constexpr auto kStep = static_cast<std::int64_t>(kGroup);
  for (std::int64_t at = begin; at < end; at += kStep) {
    const auto group = make(at / kStep);
    static_assert(std::tuple_size_v<std::remove_const_t<decltype(group)>> == kGroup);
    const std::size_t bytes = sizeof(group[0]) * static_cast<std::size_t>(std::min(kStep, end - at));
    if (bytes == sizeof(group)) {
      std::memcpy(out, group.data(), sizeof(group));
    } else {
      std::memcpy(out, group.data(), bytes);
    }
    out += bytes;
  }
}

void Generator::fill(const Drawn& drawn, std::int64_t begin, std::int64_t end, std::byte* out) const {
  const RandomWords random(seed_, drawn.stream);
  switch (drawn.law) {
    case Law::expert_ids: {
      const std::int64_t k = drawn.tensor.shape[1];
      std::vector<std::int64_t> row(static_cast<std::size_t>(k));
      for (std::int64_t i = begin; i < end; ++i) {
        if (i == begin || i % k == 0) distinct_ids(random, i / k, drawn.n_experts, row);
        std::memcpy(out + 8 * (i - begin), &row[static_cast<std::size_t>(i % k)], 8);
      }
      return;
    }
    case Law::fp8_codes:
      return fill_groups<8>(begin, end, out, [&](std::int64_t group) {
        const std::uint64_t word = random[group];
        std::array<std::uint8_t, 8> codes;
        for (std::size_t i = 0; i < 8; ++i) codes[i] = drawn.codes->codes[byte_of(word, i)];
        return codes;
      });
    case Law::fp4_codes:  // four bytes of two codes
      return fill_groups<4>(begin, end, out, [&](std::int64_t group) {
        const std::uint64_t word = random[group];
        std::array<std::uint8_t, 4> pairs;
        for (std::size_t i = 0; i < 4; ++i) {
          pairs[i] = static_cast<std::uint8_t>(drawn.codes->codes[byte_of(word, 2 * i)] |
                                               drawn.codes->codes[byte_of(word, 2 * i + 1)] << 4);
        }
        return pairs;
      });
    case Law::block_scales:
      if (drawn.tensor.dtype == DType::f32) {  // V3.2: the same powers of two
        return fill_groups<8>(begin, end, out, [&](std::int64_t group) {
          const std::uint64_t word = random[group];
          std::array<float, 8> scales;
          for (std::size_t i = 0; i < 8; ++i)
            scales[i] =
                std::ldexp(1.0F, drawn.codes->exponent - 1 + static_cast<int>(byte_of(word, i) * 3 >> 8));
          return scales;
        });
      }
      return fill_groups<8>(begin, end, out, [&](std::int64_t group) {
        const std::uint64_t word = random[group];
        std::array<std::uint8_t, 8> scales;
        for (std::size_t i = 0; i < 8; ++i)
          scales[i] = static_cast<std::uint8_t>(126 + drawn.codes->exponent + (byte_of(word, i) * 3 >> 8));
        return scales;
      });
    case Law::normal:
      break;
  }
  const auto values = [&](std::int64_t group) {
    const std::uint64_t word = random[group];
    std::array<float, 4> x;
    for (std::size_t i = 0; i < 4; ++i) {
      x[i] = drawn.mean + drawn.deviation * normal_(static_cast<std::uint32_t>(word >> (16 * i)) & 0xffff);
    }
    return x;
  };
  if (drawn.tensor.dtype == DType::f32) return fill_groups<4>(begin, end, out, values);
  HADAL_CHECK(drawn.tensor.dtype == DType::bf16 || drawn.tensor.dtype == DType::f16);
  fill_groups<4>(begin, end, out, [&](std::int64_t group) {
    const std::array<float, 4> x = values(group);
    std::array<std::uint16_t, 4> halves;
    for (std::size_t i = 0; i < 4; ++i)
      halves[i] = drawn.tensor.dtype == DType::bf16 ? f32_to_bf16(x[i]) : f32_to_f16(x[i]);
    return halves;
  });
}

}  // namespace

Config config_for_format(Config config, StorageFormat format) {
  if (format == StorageFormat::published) return config;
  config.dense_format = config.expert_format =
      format == StorageFormat::f32 ? Linear::Format::f32 : Linear::Format::bf16;
  return config;
}

namespace {

std::vector<CheckpointTensor> tensors_of(std::span<const Drawn> plan) {
  std::vector<CheckpointTensor> tensors;
  for (const Drawn& drawn : plan) tensors.push_back({drawn.tensor, drawn.law == Law::block_scales});
  return tensors;
}

}  // namespace

Result<InitSummary> init_checkpoint(const Config& config, const std::filesystem::path& directory,
                                    const InitOptions& options, ThreadPool& pool) {
  Generator generator(options.seed);
  const std::vector<Drawn> plan = generator.plan(config, options.format);
  const FillTensor fill = [&](std::size_t tensor, std::int64_t begin, std::int64_t end, std::byte* out) {
    generator.fill(plan[tensor], begin, end, out);
  };
  return write_checkpoint(config_for_format(config, options.format), directory, tensors_of(plan), fill,
                          {options.shard_bytes, options.force, options.progress}, pool);
}

Result<Buffer<std::byte>> init_checkpoint_bytes(const Config& config, std::uint64_t seed,
                                                StorageFormat format, ThreadPool& pool) {
  Generator generator(seed);
  const std::vector<Drawn> plan = generator.plan(config, format);
  const FillTensor fill = [&](std::size_t tensor, std::int64_t begin, std::int64_t end, std::byte* out) {
    generator.fill(plan[tensor], begin, end, out);
  };
  return checkpoint_image(tensors_of(plan), fill, pool);
}

}  // namespace hadal
