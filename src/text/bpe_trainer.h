// Learns the merges of a byte-level BPE from text: again and again the most frequent pair of adjacent symbols
// within a word becomes a symbol (Gage 1994; Sennrich et al. 2016). Ties go to the smaller pair of ids, as in
// the `tokenizers` library, so the result depends on the text alone.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hadal/error.h>

#include "base/thread_pool.h"
#include "text/pre_tokenizer.h"

namespace hadal {

// How often each word (a piece that the pre-tokeniser cuts) stands in the texts added.
class WordCounts {
 public:
  // Counts the words of `text`, which must be UTF-8, on all threads. Error: that of PreTokenizer::split.
  Status add(const PreTokenizer& pre_tokenizer, std::string_view text, ThreadPool& pool);

  struct Word {
    std::string bytes;
    std::int64_t count = 0;
  };
  // By bytes.
  std::vector<Word> sorted() const;

 private:
  struct Impl;
  struct Free {
    void operator()(Impl* impl) const;
  };
  std::unique_ptr<Impl, Free> impl_;
};

struct LearnedMerge {
  std::int32_t left = 0,
               right = 0;   // symbols: 0 to 255 are the bytes in the order of the byte alphabet, then
  std::int32_t result = 0;  // one per new string
};

struct LearnedBpe {
  std::vector<LearnedMerge> merges;
  std::vector<std::string> symbols;  // the bytes that each symbol stands for
};

// Learns until there are `n_symbols` symbols (the bytes included) or no pair occurs `min_count` times.
// `progress` is told how many there are.
LearnedBpe learn_bpe(std::span<const WordCounts::Word> words, std::int64_t n_symbols, std::int64_t min_count,
                     const std::function<void(std::int64_t)>& progress = {});

// A tokenizer.json with these merges, and all else as in `base_json`: the pre-tokeniser, and the added tokens
// in their order, those in front of the bytes (BOS, EOS, padding) with their ids, the others behind the
// merges. Filled up to `vocab_size` with the place holders that V4 has (those of the base are not kept).
// Without added tokens the vocabulary is the bytes and the merges alone. Error: corrupt, for a base that is
// no tokenizer.json.
Result<std::string> tokenizer_json_with(std::string_view base_json, const LearnedBpe& bpe,
                                        std::int64_t vocab_size, bool added_tokens = true);

// The symbols that fit in a vocabulary of `vocab_size` beside the added tokens of the base. Errors: corrupt;
// invalid_argument, if not even the bytes do.
Result<std::int64_t> symbols_for(std::string_view base_json, std::int64_t vocab_size,
                                 bool added_tokens = true);

}  // namespace hadal
