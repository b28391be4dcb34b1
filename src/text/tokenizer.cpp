#include <algorithm>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <tsl/robin_map.h>

#include <hadal/tokenizer.h>

#include "base/mapped_file.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"
#include "text/word_cache.h"

namespace hadal {
namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{256} << 20;
constexpr std::size_t kMaxPieceBytes = UINT32_MAX - 1;

// What one call of encode works with. Calls borrow it from the tokenizer's pool, so that a thread that
// encodes again finds the cache of words warm.
struct Scratch {
  explicit Scratch(const PreTokenizer& pre_tokenizer) : split(pre_tokenizer) {}

  PreTokenizer::Scratch split;
  BytePairEncoder::Scratch merge;
  WordCache cache;
};

class ScratchPool {
 public:
  std::unique_ptr<Scratch> take(const PreTokenizer& pre_tokenizer) {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        auto scratch = std::move(free_.back());
        free_.pop_back();
        return scratch;
      }
    }
    return std::make_unique<Scratch>(pre_tokenizer);
  }

  void give_back(std::unique_ptr<Scratch> scratch) {
    constexpr std::size_t kMaxKept = 32;
    constexpr std::size_t kMaxKeptPiece = 1 << 16;
    if (scratch->merge.ids.capacity() > kMaxKeptPiece) scratch->merge = {};  // a giant piece went through
    const std::lock_guard lock(mutex_);
    if (free_.size() < kMaxKept) free_.push_back(std::move(scratch));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

}  // namespace

struct Tokenizer::Impl {
  Impl(TokenizerDescription description, PreTokenizer splitter)
      : token_bytes(std::move(description.token_bytes)),
        added(description.added_tokens),
        pre_tokenizer(std::move(splitter)),
        merger(description.byte_ids, std::move(description.merges)),
        flags(token_bytes.size(), 0) {
    for (const AddedToken& token : description.added_tokens) {
      flags[static_cast<std::size_t>(token.id)] = token.special ? kAdded | kSpecial : kAdded;
    }
    ids.reserve(token_bytes.size());
    for (std::size_t id = 0; id < token_bytes.size(); ++id) {
      const auto [at, is_new] = ids.emplace(token_bytes[id], static_cast<std::int32_t>(id));
      if (!is_new && (flags[id] & kAdded) != 0) at.value() = static_cast<std::int32_t>(id);
    }
  }

  bool has(std::int32_t id) const { return id >= 0 && static_cast<std::size_t>(id) < token_bytes.size(); }
  std::uint8_t flags_of(std::int32_t id) const { return has(id) ? flags[static_cast<std::size_t>(id)] : 0; }

  // Appends the ids of one piece.
  Status encode_piece(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
    if (piece.size() > kMaxPieceBytes) {
      return fail(ErrorCode::resource_exhausted, "a piece of text of 4 GiB without a place to split it");
    }
    if (piece.size() > WordCache::kMaxBytes) {
      merger.encode(piece, scratch.merge, out);
      return {};
    }
    const WordCache::Key key = WordCache::key_of(piece);
    if (const auto known = scratch.cache.find(key); !known.empty()) {
      out.insert(out.end(), known.begin(), known.end());
      return {};
    }
    const std::size_t before = out.size();
    merger.encode(piece, scratch.merge, out);
    scratch.cache.insert(key, std::span(out).subspan(before));
    return {};
  }

  // Appends the ids of a run of text that has no added tokens. Valid UTF-8 goes through the patterns; each
  // run of bytes between that is not valid is a piece of its own.
  Status encode_run(std::string_view run, Scratch& scratch, std::vector<std::int32_t>& out) const {
    if (is_valid_utf8(run)) return encode_valid(run, scratch, out);
    while (!run.empty()) {
      const std::size_t valid = valid_utf8_prefix(run);
      HADAL_RETURN_IF_ERROR(encode_valid(run.substr(0, valid), scratch, out));
      run.remove_prefix(valid);
      std::size_t invalid = 0;
      while (invalid < run.size()) {
        const Utf8Lead lead = utf8_lead(run.substr(invalid));
        if (lead.kind == Utf8Lead::Kind::character) break;
        invalid += lead.length;
      }
      if (invalid > 0) HADAL_RETURN_IF_ERROR(encode_piece(run.substr(0, invalid), scratch, out));
      run.remove_prefix(invalid);
    }
    return {};
  }

  Status encode_valid(std::string_view run, Scratch& scratch, std::vector<std::int32_t>& out) const {
    Status status;
    const auto emit = [&](std::string_view piece) {
      if (status) status = encode_piece(piece, scratch, out);
    };
    HADAL_RETURN_IF_ERROR(pre_tokenizer.split(run, scratch.split, emit));
    return status;
  }

  // `control`: the stretches of `text`, [begin, end), where added tokens are recognised.
  Status encode_text(std::string_view text, std::span<const std::pair<std::size_t, std::size_t>> control,
                     Scratch& scratch, std::vector<std::int32_t>& out) const {
    std::size_t done = 0;  // where the run that has not been encoded yet begins
    for (const auto& [begin, end] : control) {
      const std::size_t offset = begin;
      const auto on_match = [&](const StringMatcher::Match& match) -> Status {
        HADAL_RETURN_IF_ERROR(encode_run(text.substr(done, offset + match.begin - done), scratch, out));
        out.push_back(match.id);
        done = offset + match.end;
        return {};
      };
      HADAL_RETURN_IF_ERROR(added.for_each(text.substr(begin, end - begin), on_match));
    }
    return encode_run(text.substr(done), scratch, out);
  }

  Result<std::vector<std::int32_t>> encode(
      std::string_view text, std::span<const std::pair<std::size_t, std::size_t>> control) const {
    std::vector<std::int32_t> out;
    out.reserve(text.size() / 4 + 8);
    auto scratch = pool.take(pre_tokenizer);
    const Status status = encode_text(text, control, *scratch, out);
    pool.give_back(std::move(scratch));
    HADAL_RETURN_IF_ERROR(status);
    return out;
  }

  static constexpr std::uint8_t kAdded = 1;
  static constexpr std::uint8_t kSpecial = 2;

  std::vector<std::string> token_bytes;  // by id
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  BytePairEncoder merger;
  std::vector<std::uint8_t> flags;                     // by id
  tsl::robin_map<std::string_view, std::int32_t> ids;  // by bytes; views of token_bytes
  mutable ScratchPool pool;
};

Result<Tokenizer> Tokenizer::from_json(std::string_view json) {
  HADAL_ASSIGN_OR_RETURN(TokenizerDescription description, parse_tokenizer_json(json));
  auto pre_tokenizer = PreTokenizer::create(description.split_patterns);
  if (!pre_tokenizer) return tl::unexpected(std::move(pre_tokenizer).error().with_context("pre_tokenizer"));
  return Tokenizer(std::make_shared<const Impl>(std::move(description), std::move(*pre_tokenizer)));
}

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& path) {
  std::error_code ignored;
  const auto file = std::filesystem::is_directory(path, ignored) ? path / "tokenizer.json" : path;
  HADAL_ASSIGN_OR_RETURN(const std::string json, read_file(file, kMaxFileBytes));
  auto tokenizer = from_json(json);
  if (!tokenizer) return tl::unexpected(std::move(tokenizer).error().with_context(file.string()));
  return tokenizer;
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text) const {
  return impl_->encode(text, {});
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::span<const TextSegment> segments) const {
  std::string text;
  std::vector<std::pair<std::size_t, std::size_t>> control;
  for (const TextSegment& segment : segments) {
    const std::size_t begin = text.size();
    text += segment.text;
    if (!segment.control || segment.text.empty()) continue;
    if (!control.empty() && control.back().second == begin) {
      control.back().second = text.size();
    } else {
      control.emplace_back(begin, text.size());
    }
  }
  return impl_->encode(text, control);
}

Result<std::vector<std::int32_t>> Tokenizer::encode_with_specials(std::string_view text) const {
  const std::pair<std::size_t, std::size_t> all{0, text.size()};
  return impl_->encode(text, {&all, 1});
}

Result<std::string> Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string bytes;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (!impl_->has(ids[i])) {
      return fail(ErrorCode::invalid_argument,
                  fmt::format("id {} at index {} is out of range: the tokenizer has the ids 0 to {}", ids[i],
                              i, vocab_size() - 1));
    }
    bytes += impl_->token_bytes[static_cast<std::size_t>(ids[i])];
  }
  return bytes;
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  return impl_->has(id) ? std::string_view(impl_->token_bytes[static_cast<std::size_t>(id)])
                        : std::string_view();
}

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(impl_->token_bytes.size());
}

std::optional<std::int32_t> Tokenizer::id_of(std::string_view token) const {
  const auto found = impl_->ids.find(token);
  if (found == impl_->ids.end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::is_added(std::int32_t id) const {
  return (impl_->flags_of(id) & Impl::kAdded) != 0;
}

bool Tokenizer::is_special(std::int32_t id) const {
  return (impl_->flags_of(id) & Impl::kSpecial) != 0;
}

std::string StreamDecoder::push(std::int32_t id) {
  pending_ += tokenizer_.token_bytes(id);
  std::string out;
  take_utf8(pending_, false, out);
  return out;
}

std::string StreamDecoder::flush() {
  std::string out;
  take_utf8(pending_, true, out);
  return out;
}

}  // namespace hadal
