#include "train/data.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "base/rng.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;

// Streams of the generator: what is drawn, in the top byte.
enum : std::uint64_t {
  kWindows = std::uint64_t{1} << 56,
  kMixture = std::uint64_t{2} << 56,
  kBeginning = std::uint64_t{3} << 56
};

}  // namespace

Result<TokenStream> TokenStream::open(const fs::path& path) {
  std::vector<fs::path> names;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    for (fs::directory_iterator at(path, error), end; !error && at != end; at.increment(error)) {
      const std::string name = at->path().filename().string();
      if (name.starts_with("shard-") && name.ends_with(".tok")) names.push_back(at->path());
    }
    if (error)
      return fail(ErrorCode::io, fmt::format("{}: cannot list it: {}", path.string(), error.message()));
    std::sort(names.begin(), names.end());
    if (names.empty()) {
      return fail(ErrorCode::not_found,
                  fmt::format("{}: no shard-*.tok there; hadal data build makes them", path.string()));
    }
  } else {
    names.push_back(path);
  }
  TokenStream stream;
  stream.begin_.push_back(0);
  for (const fs::path& name : names) {
    HADAL_ASSIGN_OR_RETURN(TokenFile file, TokenFile::open(name));
    if (!stream.files_.empty() && file.info() != stream.info()) {
      return fail(ErrorCode::corrupt, fmt::format("{}: made with another tokenizer than {}", name.string(),
                                                  names[0].filename().string()));
    }
    stream.begin_.push_back(stream.begin_.back() + file.size());
    stream.masked_ = stream.masked_ || file.masked();
    stream.files_.push_back(std::move(file));
  }
  return stream;
}

void TokenStream::read(std::int64_t begin, std::span<std::int32_t> tokens,
                       std::span<std::uint8_t> counts) const {
  auto file =
      static_cast<std::size_t>(std::upper_bound(begin_.begin(), begin_.end(), begin) - begin_.begin() - 1);
  while (!tokens.empty()) {
    const std::int64_t within = begin - begin_[file];
    const auto n = static_cast<std::size_t>(
        std::min<std::int64_t>(static_cast<std::int64_t>(tokens.size()), files_[file].size() - within));
    files_[file].read(within, tokens.first(n));
    tokens = tokens.subspan(n);
    if (!counts.empty()) {
      files_[file].read_counts(within, counts.first(n));
      counts = counts.subspan(n);
    }
    begin += static_cast<std::int64_t>(n);
    ++file;
  }
}

Permutation::Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t stream)
    : n_(n), seed_(seed), stream_(stream) {
  const int bits = std::bit_width(static_cast<std::uint64_t>(std::max<std::int64_t>(n - 1, 1)));
  half_bits_ = (bits + 1) / 2;
}

std::int64_t Permutation::operator()(std::int64_t i) const {
  const Philox random(seed_, stream_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto x = static_cast<std::uint64_t>(i);
  do {  // at most four times as many values as wanted ones: few turns
    std::uint64_t left = x >> half_bits_, right = x & mask;
    for (std::uint64_t round = 0; round < 4; ++round) {
      const std::uint64_t mixed = left ^ (random.block(round << 40 | right)[0] & mask);
      left = right;
      right = mixed;
    }
    x = left << half_bits_ | right;
  } while (x >= static_cast<std::uint64_t>(n_));
  return static_cast<std::int64_t>(x);
}

Result<TrainingData> TrainingData::open(std::span<const DataSource> sources, std::uint64_t seed) {
  TrainingData data;
  data.seed_ = seed;
  double total = 0;
  for (const DataSource& source : sources) total += source.weight;
  double sum = 0;
  for (const DataSource& source : sources) {
    HADAL_ASSIGN_OR_RETURN(TokenStream stream, TokenStream::open(source.path));
    if (!data.streams_.empty() && stream.info() != data.streams_[0].info()) {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{}: made with another tokenizer than {}; build both with the same one",
                              source.path.string(), data.paths_[0].string()));
    }
    data.masked_ = data.masked_ || stream.masked();
    data.streams_.push_back(std::move(stream));
    data.paths_.push_back(source.path);
    sum += source.weight;
    data.share_end_.push_back(std::llround(sum / total * static_cast<double>(kRound)));
  }
  return data;
}

std::int64_t TrainingData::size() const {
  std::int64_t total = 0;
  for (const TokenStream& stream : streams_) total += stream.size();
  return total;
}

Status TrainingData::check_length(std::int64_t span) const {
  for (std::size_t s = 0; s < streams_.size(); ++s) {
    if (streams_[s].size() < span) {
      return fail(
          ErrorCode::invalid_argument,
          fmt::format("{}: {} tokens, too few for one sequence of {}; use more text or a shorter length",
                      paths_[s].string(), streams_[s].size(), span));
    }
  }
  return {};
}

void TrainingData::sequence(std::uint64_t stage, std::int64_t k, std::int64_t length,
                            std::span<std::int32_t> tokens, std::span<std::uint8_t> counts) const {
  const std::int64_t round = k / kRound;
  std::int64_t slot = k % kRound;
  std::size_t s = 0;
  std::int64_t in_source = k;
  if (streams_.size() > 1) {
    slot = Permutation(kRound, seed_, kMixture | stage << 40 | static_cast<std::uint64_t>(round))(slot);
    while (slot >= share_end_[s]) ++s;
    const std::int64_t first = s == 0 ? 0 : share_end_[s - 1], share = share_end_[s] - first;
    in_source = round * share + (slot - first);
  }
  const TokenStream& stream = streams_[s];
  const std::int64_t windows = stream.windows(length, static_cast<std::int64_t>(tokens.size()));
  const std::uint64_t epoch = static_cast<std::uint64_t>(in_source / windows);
  const std::uint64_t key = static_cast<std::uint64_t>(s) << 48 | stage << 40 | epoch;
  const std::int64_t window = Permutation(windows, seed_, kWindows | key)(in_source % windows);
  const std::int64_t beginnings = stream.size() - static_cast<std::int64_t>(tokens.size()) + 1;
  const auto beginning = epoch == 0 ? 0
                                    : static_cast<std::int64_t>(Philox(seed_, kBeginning | key).uniform(0) *
                                                                static_cast<double>(beginnings));
  stream.read((beginning + window * length) % beginnings, tokens, counts);
}

void TrainingData::held_out(std::int64_t k, std::int64_t n, std::int64_t length,
                            std::span<std::int32_t> tokens, std::span<std::uint8_t> counts) const {
  const std::int64_t windows = streams_[0].windows(length, static_cast<std::int64_t>(tokens.size()));
  streams_[0].read(k % std::max<std::int64_t>(n, 1) * windows / n % windows * length, tokens, counts);
}

}  // namespace hadal
