#include "model/init.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <system_error>

#include <fmt/format.h>
#include <xxhash.h>

#include "base/check.h"
#include "base/file_writer.h"
#include "base/readable.h"
#include "base/rng.h"
#include "formats/safetensors_writer.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;

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

// Writing --------------------------------------------------------------------------------------------------

using Sink = std::function<Status(std::span<const std::byte>)>;

// Large tensors first within a file: those whose size is a multiple of 64 bytes then all start at one too.
void order_for_alignment(std::vector<Drawn>& tensors) {
  std::stable_partition(tensors.begin(), tensors.end(),
                        [](const Drawn& drawn) { return drawn.tensor.bytes() % 64 == 0; });
}

std::vector<AnnouncedTensor> announce(std::span<const Drawn> tensors) {
  std::vector<AnnouncedTensor> announced;
  for (const Drawn& drawn : tensors) announced.push_back(drawn.tensor);
  return announced;
}

// Sends the bytes of all tensors to the sink, in order, a bufferful at a time.
Status generate(const Generator& generator, std::span<const Drawn> tensors, Buffer<std::byte>& buffer,
                ThreadPool& pool, const Sink& sink) {
  struct Piece {
    const Drawn* drawn;
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
                          generator.fill(*piece.drawn, piece.begin, piece.end, buffer.data() + piece.offset);
                        }
                      });
    HADAL_RETURN_IF_ERROR(sink(buffer.span().first(used)));
    pieces.clear();
    used = 0;
    return {};
  };
  for (const Drawn& drawn : tensors) {
    const std::int64_t size = size_of(drawn.tensor.dtype), elements = drawn.tensor.bytes() / size;
    const std::int64_t step = kPieceBytes / size;
    for (std::int64_t begin = 0; begin < elements; begin += step) {
      const std::int64_t end = std::min(begin + step, elements);
      const auto bytes = static_cast<std::size_t>((end - begin) * size);
      if (used + bytes > buffer.size()) HADAL_RETURN_IF_ERROR(flush());
      pieces.push_back({&drawn, begin, end, used});
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

std::string index_json(std::span<const std::vector<Drawn>> shards, std::span<const std::string> names,
                       std::int64_t total) {
  std::string text = fmt::format("{{\n  \"metadata\": {{\"total_size\": {}}},\n  \"weight_map\": {{", total);
  const char* separator = "\n";
  for (std::size_t s = 0; s < shards.size(); ++s) {
    for (const Drawn& drawn : shards[s]) {
      fmt::format_to(std::back_inserter(text), "{}    \"{}\": \"{}\"", separator, drawn.tensor.name,
                     names[s]);
      separator = ",\n";
    }
  }
  return text + "\n  }\n}\n";
}

}  // namespace

Config config_for_format(Config config, StorageFormat format) {
  if (format == StorageFormat::published) return config;
  config.dense_format = config.expert_format =
      format == StorageFormat::f32 ? Linear::Format::f32 : Linear::Format::bf16;
  return config;
}

Result<InitSummary> init_checkpoint(const Config& config, const fs::path& directory,
                                    const InitOptions& options, ThreadPool& pool) {
  const std::vector<fs::path> old_files = checkpoint_files(directory);
  if (!old_files.empty() && !options.force) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: there already; --force replaces the checkpoint", old_files[0].string()));
  }
  if (options.shard_bytes < 1)
    return fail(ErrorCode::invalid_argument,
                fmt::format("shards of {} bytes: at least 1 is needed", options.shard_bytes));

  // The tensors, cut into shards; a weight and its scales stay together.
  Generator generator(options.seed);
  std::vector<std::vector<Drawn>> shards(1);
  InitSummary summary;
  std::int64_t in_shard = 0;
  for (Drawn& drawn : generator.plan(config, options.format)) {
    const std::int64_t bytes = drawn.tensor.bytes();
    if (in_shard + bytes > options.shard_bytes && in_shard > 0 && drawn.law != Law::block_scales) {
      shards.emplace_back();
      in_shard = 0;
    }
    in_shard += bytes;
    summary.bytes += bytes;
    ++summary.tensors;
    shards.back().push_back(std::move(drawn));
  }
  if (shards.size() > 99999) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("shards of {} bytes make {} files, more than 99999; use larger ones",
                            options.shard_bytes, shards.size()));
  }
  for (std::size_t s = 0; s < shards.size(); ++s) {
    order_for_alignment(shards[s]);
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
        SafetensorsWriter::create(staging.path() / summary.shards[s], announce(shards[s])));
    const auto sink = [&](std::span<const std::byte> bytes) -> Status {
      HADAL_RETURN_IF_ERROR(writer.write(bytes));
      done += static_cast<std::int64_t>(bytes.size());
      if (options.progress && !options.progress(done, summary.bytes)) {
        return fail(ErrorCode::cancelled,
                    fmt::format("{}: stopped; nothing was changed there", directory.string()));
      }
      return {};
    };
    HADAL_RETURN_IF_ERROR(generate(generator, shards[s], buffer, pool, sink));
    HADAL_RETURN_IF_ERROR(writer.commit());
  }
  std::vector<std::string> names = {"config.json"};
  HADAL_RETURN_IF_ERROR(
      write_file(staging.path() / names[0], config_to_json(config_for_format(config, options.format))));
  names.insert(names.end(), summary.shards.begin(), summary.shards.end());
  if (shards.size() > 1) {
    names.emplace_back("model.safetensors.index.json");
    HADAL_RETURN_IF_ERROR(
        write_file(staging.path() / names.back(), index_json(shards, summary.shards, summary.bytes)));
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

Result<Buffer<std::byte>> init_checkpoint_bytes(const Config& config, std::uint64_t seed,
                                                StorageFormat format, ThreadPool& pool) {
  Generator generator(seed);
  std::vector<Drawn> tensors = generator.plan(config, format);
  order_for_alignment(tensors);
  const std::string header = safetensors_header(announce(tensors));
  std::int64_t bytes = 0;
  for (const Drawn& drawn : tensors) bytes += drawn.tensor.bytes();
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
      generate(generator, tensors, buffer, pool, [&](std::span<const std::byte> part) -> Status {
        std::memcpy(image.data() + at, part.data(), part.size());
        at += part.size();
        return {};
      }));
  HADAL_CHECK(at == image.size());
  return image;
}

}  // namespace hadal
