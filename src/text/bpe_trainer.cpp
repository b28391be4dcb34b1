#include "text/bpe_trainer.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <queue>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <tsl/robin_map.h>

#include "text/byte_alphabet.h"
#include "text/text_pieces.h"
#include "text/utf8.h"

namespace hadal {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr std::string_view kPlaceHolder = "<｜place▁holder▁no▁";

// Words are looked up by views of the text and stored as strings.
struct Hash {
  using is_transparent = void;
  std::size_t operator()(std::string_view word) const { return std::hash<std::string_view>()(word); }
};
struct Equal {
  using is_transparent = void;
  bool operator()(std::string_view a, std::string_view b) const { return a == b; }
};
using Counts = tsl::robin_map<std::string, std::int64_t, Hash, Equal>;

void count(Counts& counts, std::string_view word, std::int64_t n) {
  if (const auto found = counts.find(word); found != counts.end()) {
    found.value() += n;
  } else {
    counts.emplace(std::string(word), n);
  }
}

// The bytes in the order of the byte alphabet: printable Latin-1 first (text/byte_alphabet.h).
std::vector<std::uint8_t> bytes_in_order() {
  std::vector<std::uint8_t> order;
  for (const bool printable : {true, false}) {
    for (int byte = 0; byte < 256; ++byte) {
      const char c = static_cast<char>(byte);
      const std::string spelling = spelling_of_bytes(std::string_view(&c, 1));
      // Others are spelled U+0100 and above, which UTF-8 begins with 0xC4 or 0xC5.
      const auto lead = static_cast<std::uint8_t>(spelling[0]);
      if ((lead != 0xC4 && lead != 0xC5) == printable) order.push_back(static_cast<std::uint8_t>(byte));
    }
  }
  return order;
}

struct Candidate {
  std::int64_t count;
  std::uint64_t pair;
  bool operator<(const Candidate& other) const {  // the best is the largest
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

// All pairs with the same right symbol agree in their low bits, by which the map would choose a place: so the
// high half of a product, in which every bit of the pair counts (2^64 / golden ratio).
struct PairHash {
  std::size_t operator()(std::uint64_t pair) const {
    const std::uint64_t product = pair * 0x9e3779b97f4a7c15;
    return static_cast<std::size_t>(product ^ product >> 32);
  }
};

// The words as symbols, and where which pairs are.
class Learner {
 public:
  explicit Learner(std::span<const WordCounts::Word> words) {
    const std::vector<std::uint8_t> order = bytes_in_order();
    std::array<std::int32_t, 256> symbol_of{};
    for (std::size_t i = 0; i < order.size(); ++i) {
      symbol_of[order[i]] = static_cast<std::int32_t>(i);
      const char c = static_cast<char>(order[i]);
      add_symbol(std::string(1, c));
    }
    for (const WordCounts::Word& word : words) {
      if (word.bytes.size() < 2) continue;
      std::vector<std::int32_t>& symbols = words_.emplace_back();
      for (const char c : word.bytes) symbols.push_back(symbol_of[static_cast<std::uint8_t>(c)]);
      word_counts_.push_back(word.count);
      add_pairs(words_.size() - 1, word.count, true);
    }
    for (const auto& [pair, n] : counts_) queue_.push({n, pair});
    changed_.clear();
  }

  std::int64_t n_symbols() const { return static_cast<std::int64_t>(result_.symbols.size()); }

  // Makes the most frequent pair a symbol; false if none is frequent enough.
  bool merge_one(std::int64_t min_count) {
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      const auto now = counts_.find(best.pair);
      const std::int64_t n = now == counts_.end() ? 0 : now->second;
      if (n != best.count) {  // an old entry
        if (n > 0) queue_.push({n, best.pair});
        continue;
      }
      if (n < std::max<std::int64_t>(min_count, 1)) return false;
      merge(best.pair);
      return true;
    }
    return false;
  }

  LearnedBpe take() { return std::move(result_); }

 private:
  std::int32_t add_symbol(std::string bytes) {
    const auto id = static_cast<std::int32_t>(result_.symbols.size());
    ids_.emplace(bytes, id);
    result_.symbols.push_back(std::move(bytes));
    return id;
  }

  // Counts all pairs of a word `n` times more.
  void add_pairs(std::size_t word, std::int64_t n, bool remember) {
    const std::vector<std::int32_t>& symbols = words_[word];
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const std::uint64_t pair = pair_of(symbols[i], symbols[i + 1]);
      counts_[pair] += n;
      if (!remember) continue;
      std::vector<std::uint32_t>& places = places_[pair];
      if (places.empty() || places.back() != word) places.push_back(static_cast<std::uint32_t>(word));
      changed_.push_back(pair);
    }
  }

  void merge(std::uint64_t pair) {
    const auto left = static_cast<std::int32_t>(pair >> 32),
               right = static_cast<std::int32_t>(pair & 0xffffffff);
    std::string bytes =
        result_.symbols[static_cast<std::size_t>(left)] + result_.symbols[static_cast<std::size_t>(right)];
    // Another pair may have given the same string before.
    const auto known = ids_.find(bytes);
    const std::int32_t id = known != ids_.end() ? known->second : add_symbol(std::move(bytes));
    result_.merges.push_back({left, right, id});
    std::vector<std::uint32_t> places = std::move(places_[pair]);
    places_.erase(pair);
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    changed_.clear();
    for (const std::uint32_t word : places) {
      std::vector<std::int32_t>& symbols = words_[word];
      add_pairs(word, -word_counts_[word], false);
      std::size_t out = 0;
      for (std::size_t i = 0; i < symbols.size(); ++i) {
        if (i + 1 < symbols.size() && symbols[i] == left && symbols[i + 1] == right) {
          symbols[out++] = id;
          ++i;
        } else {
          symbols[out++] = symbols[i];
        }
      }
      symbols.resize(out);
      add_pairs(word, word_counts_[word], true);
    }
    counts_.erase(pair);
    std::sort(changed_.begin(), changed_.end());
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
    for (const std::uint64_t other : changed_) {
      const auto found = counts_.find(other);
      // Only pairs with the new symbol have become more; others come up with their old count and are
      // corrected.
      const bool has_new =
          static_cast<std::int32_t>(other >> 32) == id || static_cast<std::int32_t>(other & 0xffffffff) == id;
      if (has_new && found != counts_.end() && found->second > 0) queue_.push({found->second, other});
    }
  }

  std::vector<std::vector<std::int32_t>> words_;
  std::vector<std::int64_t> word_counts_;
  tsl::robin_map<std::uint64_t, std::int64_t, PairHash> counts_;
  // Words that have, or had, the pair.
  tsl::robin_map<std::uint64_t, std::vector<std::uint32_t>, PairHash> places_;
  std::vector<std::uint64_t> changed_;
  std::priority_queue<Candidate> queue_;
  tsl::robin_map<std::string, std::int32_t> ids_;
  LearnedBpe result_;
};

struct Base {
  Json json;
  std::vector<Json> leading, trailing;  // added tokens before and behind the bytes
};

Result<Base> read_base(std::string_view text, bool added_tokens) {
  Base base;
  base.json = Json::parse(text, nullptr, false);
  try {
    const Json& vocab = base.json.at("model").at("vocab");
    const std::int64_t first_byte = vocab.at("!").get<std::int64_t>();
    for (const Json& token : base.json.at("added_tokens")) {
      if (!added_tokens || token.at("content").get<std::string>().starts_with(kPlaceHolder)) continue;
      (token.at("id").get<std::int64_t>() < first_byte ? base.leading : base.trailing).push_back(token);
    }
  } catch (const Json::exception& error) {
    return fail(ErrorCode::corrupt, fmt::format("not a tokenizer.json of DeepSeek's kind: {}", error.what()));
  }
  return base;
}

}  // namespace

struct WordCounts::Impl {
  Counts counts;
};
void WordCounts::Free::operator()(Impl* impl) const {
  delete impl;
}

Status WordCounts::add(const PreTokenizer& pre_tokenizer, std::string_view text, ThreadPool& pool) {
  if (impl_ == nullptr) impl_.reset(new Impl);
  const std::vector<std::size_t> ends = piece_ends(text, kPieceBytes);
  // One map per thread's run of pieces, then all into one: sums do not depend on who counted what.
  const auto n_runs = static_cast<std::int64_t>(
      std::min<std::size_t>(ends.size(), 4 * static_cast<std::size_t>(pool.size())));
  std::vector<Counts> counts(static_cast<std::size_t>(n_runs));
  std::vector<Status> statuses(static_cast<std::size_t>(n_runs));
  pool.parallel_for(n_runs, 1, [&](std::int64_t begin, std::int64_t end) {
    PreTokenizer::Scratch scratch(pre_tokenizer);
    for (auto run = static_cast<std::size_t>(begin); run < static_cast<std::size_t>(end); ++run) {
      const std::size_t first = run * ends.size() / static_cast<std::size_t>(n_runs);
      const std::size_t last = (run + 1) * ends.size() / static_cast<std::size_t>(n_runs);
      for (std::size_t i = first; i < last && statuses[run]; ++i) {
        const std::size_t from = i == 0 ? 0 : ends[i - 1];
        statuses[run] = pre_tokenizer.split(text.substr(from, ends[i] - from), scratch,
                                            [&](std::string_view word) { count(counts[run], word, 1); });
      }
    }
  });
  for (std::size_t run = 0; run < counts.size(); ++run) {
    HADAL_RETURN_IF_ERROR(statuses[run]);
    for (const auto& [word, n] : counts[run]) count(impl_->counts, word, n);
  }
  return {};
}

std::vector<WordCounts::Word> WordCounts::sorted() const {
  std::vector<Word> words;
  if (impl_ == nullptr) return words;
  for (const auto& [word, n] : impl_->counts) words.push_back({word, n});
  std::sort(words.begin(), words.end(), [](const Word& a, const Word& b) { return a.bytes < b.bytes; });
  return words;
}

LearnedBpe learn_bpe(std::span<const WordCounts::Word> words, std::int64_t n_symbols, std::int64_t min_count,
                     const std::function<void(std::int64_t)>& progress) {
  Learner learner(words);
  while (learner.n_symbols() < n_symbols && learner.merge_one(min_count)) {
    if (progress) progress(learner.n_symbols());
  }
  return learner.take();
}

Result<std::int64_t> symbols_for(std::string_view base_json, std::int64_t vocab_size, bool added_tokens) {
  HADAL_ASSIGN_OR_RETURN(const Base base, read_base(base_json, added_tokens));
  const auto added = static_cast<std::int64_t>(base.leading.size() + base.trailing.size());
  if (vocab_size < added + 256) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("a vocabulary of {}: the 256 bytes and {} added tokens alone are {}", vocab_size,
                            added, added + 256));
  }
  return vocab_size - added;
}

Result<std::string> tokenizer_json_with(std::string_view base_json, const LearnedBpe& bpe,
                                        std::int64_t vocab_size, bool added_tokens) {
  HADAL_ASSIGN_OR_RETURN(Base base, read_base(base_json, added_tokens));
  Json vocab = Json::object(), added = Json::array(), merges = Json::array();
  std::int64_t id = 0;
  // ordered_json finds keys by going through them all, so entries are put behind each other without looking.
  auto& entries = vocab.get_ref<Json::object_t&>();
  const auto add = [&](Json token) {
    token["id"] = id++;
    added.push_back(std::move(token));
  };
  for (Json& token : base.leading) {
    entries.push_back({token.at("content").get<std::string>(), id});
    add(std::move(token));
  }
  for (const std::string& symbol : bpe.symbols) entries.push_back({spelling_of_bytes(symbol), id++});
  for (const LearnedMerge& merge : bpe.merges) {
    merges.push_back(spelling_of_bytes(bpe.symbols[static_cast<std::size_t>(merge.left)]) + " " +
                     spelling_of_bytes(bpe.symbols[static_cast<std::size_t>(merge.right)]));
  }
  for (Json& token : base.trailing) add(std::move(token));
  const std::int64_t holders = added_tokens ? vocab_size - id : 0;
  for (std::int64_t holder = 0; holder < holders; ++holder) {
    add({{"id", 0},
         {"content", fmt::format("{}{}｜>", kPlaceHolder, holder)},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}});
  }
  base.json["added_tokens"] = std::move(added);
  base.json["model"]["vocab"] = std::move(vocab);
  base.json["model"]["merges"] = std::move(merges);
  return base.json.dump(1) + "\n";
}

}  // namespace hadal
