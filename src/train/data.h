// The sequences of training: shards of tokens cut into windows, shuffled, and mixed by weight. Which window
// is the k-th sequence is a pure function of (seed, stage, k), so training resumes at any step by counting.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <hadal/error.h>

#include "train/token_file.h"

namespace hadal {

// The shards of one directory (shard-*.tok, in the order of their names) as one stream of tokens.
class TokenStream {
 public:
  // A directory or a single shard. Errors: those of TokenFile::open; not_found for a directory without
  // shards; corrupt if they are of several tokenizers.
  static Result<TokenStream> open(const std::filesystem::path& path);

  std::int64_t size() const { return begin_.back(); }
  const TokenFileInfo& info() const { return files_[0].info(); }
  bool masked() const { return masked_; }

  // Tokens [begin, begin + tokens.size()) of the stream; `counts` as long, or empty.
  void read(std::int64_t begin, std::span<std::int32_t> tokens, std::span<std::uint8_t> counts) const;

  // Windows of `span` tokens that begin every `length`.
  std::int64_t windows(std::int64_t length, std::int64_t span) const {
    return size() < span ? 0 : (size() - span) / length + 1;
  }

 private:
  std::vector<TokenFile> files_;
  std::vector<std::int64_t> begin_;  // [files + 1]: where each starts
  bool masked_ = false;
};

// A permutation of [0, n) without a table: a Feistel network of four Philox rounds over the smallest even
// number of bits that holds n, walked until the result is below n.
class Permutation {
 public:
  Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t stream);
  std::int64_t operator()(std::int64_t i) const;

 private:
  std::int64_t n_;
  std::uint64_t seed_, stream_;
  int half_bits_;
};

struct DataSource {
  std::filesystem::path path;
  double weight = 1;  // its share of the sequences, relative to the others'

  bool operator==(const DataSource&) const = default;
};

// A mixture of token streams.
class TrainingData {
 public:
  // Errors: those of TokenStream::open; invalid_argument where vocabularies differ.
  static Result<TrainingData> open(std::span<const DataSource> sources, std::uint64_t seed);

  std::int64_t vocab_size() const { return streams_[0].info().vocab_size; }
  bool masked() const { return masked_; }
  std::int64_t size() const;  // tokens of all sources
  // Whether every source has a window of this many tokens. Error: invalid_argument, naming the one that is
  // too short.
  Status check_length(std::int64_t span) const;

  // Sequence k of a stage whose windows of `tokens.size()` tokens begin every `length`. Within a source no
  // window comes again before all others were seen; then the text is cut at other places (it is a ring, and
  // every round of it begins somewhere else). `counts` as long as tokens, or empty.
  void sequence(std::uint64_t stage, std::int64_t k, std::int64_t length, std::span<std::int32_t> tokens,
                std::span<std::uint8_t> counts) const;

  // The same without shuffling and mixing, for evaluation: the k-th of `n` windows spread evenly over the
  // first source.
  void held_out(std::int64_t k, std::int64_t n, std::int64_t length, std::span<std::int32_t> tokens,
                std::span<std::uint8_t> counts) const;

 private:
  // Sequences are mixed in rounds: source s has share_[s] of the kRound of each, in an order drawn per round.
  static constexpr std::int64_t kRound = 1024;

  std::vector<TokenStream> streams_;
  std::vector<std::filesystem::path> paths_;
  std::vector<std::int64_t> share_end_;  // [sources]: running sum of shares
  std::uint64_t seed_ = 0;
  bool masked_ = false;
};

}  // namespace hadal
