#include "train/corpus.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include <fmt/format.h>

#include "base/mapped_file.h"
#include "text/json_value.h"
#include "text/text_pieces.h"
#include "text/utf8.h"
#include "train/token_file.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;

// Collects documents and writes a shard whenever enough are there.
class ShardWriter {
 public:
  ShardWriter(fs::path directory, TokenFileInfo info, std::int64_t shard_tokens)
      : directory_(std::move(directory)),
        info_(info),
        shard_tokens_(static_cast<std::size_t>(shard_tokens)) {}

  Status add(std::span<const std::int32_t> tokens, std::span<const std::uint8_t> counts) {
    if (!tokens_.empty() && tokens_.size() + tokens.size() > shard_tokens_) HADAL_RETURN_IF_ERROR(flush());
    if (!counts.empty() && counts_.size() < tokens_.size()) counts_.resize(tokens_.size(), 1);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    if (!counts.empty() || !counts_.empty()) {
      if (counts.empty()) {
        counts_.resize(tokens_.size(), 1);
      } else {
        counts_.insert(counts_.end(), counts.begin(), counts.end());
      }
    }
    total_ += static_cast<std::int64_t>(tokens.size());
    return {};
  }
  Status flush() {
    if (tokens_.empty()) return {};
    std::error_code error;
    fs::create_directories(directory_, error);
    if (error) {
      return fail(ErrorCode::io,
                  fmt::format("{}: cannot create the directory: {}", directory_.string(), error.message()));
    }
    HADAL_RETURN_IF_ERROR(
        write_token_file(directory_ / fmt::format("shard-{:05}.tok", shards_), info_, tokens_, counts_));
    ++shards_;
    tokens_.clear();
    counts_.clear();
    return {};
  }
  std::int64_t shards() const { return shards_; }
  std::int64_t total() const { return total_; }

 private:
  fs::path directory_;
  TokenFileInfo info_;
  std::size_t shard_tokens_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint8_t> counts_;  // empty: all count
  std::int64_t shards_ = 0, total_ = 0;
};

Status check_text(std::string_view text, const std::string& where) {
  if (text.empty())
    return fail(ErrorCode::invalid_argument, fmt::format("{}: empty; give it some text", where));
  std::size_t bad = valid_utf8_prefix(text);
  if (const std::size_t zero = text.substr(0, bad).find('\0'); zero != std::string_view::npos) bad = zero;
  if (bad == text.size()) return {};
  return fail(
      ErrorCode::invalid_argument,
      fmt::format("{}: not text: byte {} is 0x{:02x}, which no UTF-8 text has there; leave the file out or "
                  "convert it to UTF-8",
                  where, bad, static_cast<unsigned>(static_cast<std::uint8_t>(text[bad]))));
}

// One line of JSONL as tokens.
Result<MarkedTokens> read_line(const Tokenizer& tokenizer, std::string_view line,
                               const CorpusOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const JsonValue json, parse_json(line));
  if (const JsonValue* messages = json.find("messages"); messages != nullptr) {
    HADAL_ASSIGN_OR_RETURN(std::vector<ChatMessage> list, messages_from_json(*messages));
    if (const JsonValue* tools = json.find("tools"); tools != nullptr && tools->truthy()) {
      HADAL_ASSIGN_OR_RETURN(std::vector<std::string> declared, tools_from_json(*tools));
      declare_tools(list, std::move(declared));
    }
    // Thinking mode where a message has reasoning, unless the line says which.
    ChatOptions defaults;
    defaults.thinking = std::any_of(list.begin(), list.end(),
                                    [](const ChatMessage& m) { return !m.reasoning_content.empty(); });
    HADAL_ASSIGN_OR_RETURN(const ChatOptions chat, chat_options_from_json(json, defaults));
    return mark_assistant(tokenizer, dialect_v4(), list, chat);
  }
  const JsonValue* text = json.find("text");
  if (text == nullptr || !text->is_string()) {
    return fail(ErrorCode::invalid_argument, "neither \"text\" (a string) nor \"messages\" (an array)");
  }
  MarkedTokens result;
  if (options.document_marks) result.tokens.push_back(options.bos);
  HADAL_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, tokenizer.encode(text->text));
  result.tokens.insert(result.tokens.end(), ids.begin(), ids.end());
  if (options.document_marks) result.tokens.push_back(options.eos);
  return result;
}

Result<std::vector<std::int32_t>> encode_parallel(const Tokenizer& tokenizer, std::string_view text,
                                                  ThreadPool& pool) {
  const std::vector<std::size_t> ends = piece_ends(text, std::size_t{1} << 20);
  std::vector<std::optional<Result<std::vector<std::int32_t>>>> parts(ends.size());
  pool.parallel_for(static_cast<std::int64_t>(ends.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      const std::size_t from = i == 0 ? 0 : ends[i - 1];
      parts[i] = tokenizer.encode(text.substr(from, ends[i] - from));
    }
  });
  std::vector<std::int32_t> ids;
  for (auto& part : parts) {
    if (!part->has_value()) return std::move(*part);
    ids.insert(ids.end(), (*part)->begin(), (*part)->end());
  }
  return ids;
}

}  // namespace

Result<MarkedTokens> mark_assistant(const Tokenizer& tokenizer, const ChatDialect& dialect,
                                    std::span<const ChatMessage> messages, const ChatOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const std::vector<PromptSegment> prompt, encode_chat(dialect, messages, options));
  MarkedTokens result;
  enum class Place : std::uint8_t { outside, opened, inside } place = Place::outside;
  for (const PromptSegment& segment : prompt) {
    const TextSegment text{segment.text, segment.control};
    HADAL_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, tokenizer.encode(std::span(&text, 1)));
    const auto is = [&](std::string_view token) { return segment.control && segment.text == token; };
    bool counts = place != Place::outside;
    if (is(dialect.assistant)) {
      place = Place::opened;
      counts = false;
    } else if (place == Place::opened) {  // the mark of the thinking mode belongs to the prompt
      counts = !is(dialect.think_start) && !is(dialect.think_end);
      place = Place::inside;
    } else if (is(dialect.user) || is(dialect.latest_reminder) || is(dialect.bos)) {
      place = Place::outside;  // after a turn without EOS
      counts = false;
    }
    if (is(dialect.eos)) place = Place::outside;
    result.tokens.insert(result.tokens.end(), ids.begin(), ids.end());
    result.counts.resize(result.tokens.size(), counts ? 1 : 0);
  }
  return result;
}

Result<CorpusSummary> build_corpus(const Tokenizer& tokenizer, std::span<const std::string> files,
                                   const fs::path& out, const CorpusOptions& options, ThreadPool& pool) {
  if (files.empty()) return fail(ErrorCode::invalid_argument, "no files; name at least one of text or JSONL");
  const TokenFileInfo info{tokenizer.vocab_size(), options.tokenizer_hash};
  ShardWriter training(out, info, options.shard_tokens),
      held_out(out / "held_out", info, options.shard_tokens);
  CorpusSummary summary;
  std::int64_t total_bytes = 0;
  for (const std::string& name : files) {
    std::error_code error;
    const auto size = fs::file_size(name, error);
    if (!error) total_bytes += static_cast<std::int64_t>(size);
  }
  const auto count = [&](const MarkedTokens& document) {
    ++summary.documents;
    summary.counted += document.counts.empty()
                           ? static_cast<std::int64_t>(document.tokens.size())
                           : std::count(document.counts.begin(), document.counts.end(), std::uint8_t{1});
  };
  for (const std::string& name : files) {
    HADAL_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(name));
    const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    HADAL_RETURN_IF_ERROR(check_text(text, name));
    if (name.ends_with(".jsonl")) {
      std::int64_t line_number = 0;
      for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        const std::string_view line = text.substr(at, end - at);
        at = end + 1;
        ++line_number;
        if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
        auto document = read_line(tokenizer, line, options);
        if (!document) {
          return fail(ErrorCode::invalid_argument,
                      fmt::format("{}:{}: {}", name, line_number, document.error().message()));
        }
        // Every 1 / share-th document, so that the end of a sorted file is not all that is held out.
        const auto share = [&](std::int64_t n) {
          return std::floor(static_cast<double>(n) * options.held_out);
        };
        const bool hold = share(summary.documents + 1) > share(summary.documents);
        count(*document);
        HADAL_RETURN_IF_ERROR((hold ? held_out : training).add(document->tokens, document->counts));
        if (options.progress) options.progress(summary.bytes + static_cast<std::int64_t>(at), total_bytes);
      }
    } else {
      MarkedTokens document;
      if (options.document_marks) document.tokens.push_back(options.bos);
      HADAL_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, encode_parallel(tokenizer, text, pool));
      document.tokens.insert(document.tokens.end(), ids.begin(), ids.end());
      if (options.document_marks) document.tokens.push_back(options.eos);
      count(document);
      const auto keep = static_cast<std::size_t>(
          std::llround(static_cast<double>(document.tokens.size()) * (1 - options.held_out)));
      HADAL_RETURN_IF_ERROR(training.add(std::span(document.tokens).first(keep), {}));
      if (keep < document.tokens.size()) {
        HADAL_RETURN_IF_ERROR(held_out.add(std::span(document.tokens).subspan(keep), {}));
      }
    }
    summary.bytes += static_cast<std::int64_t>(text.size());
    if (options.progress) options.progress(summary.bytes, total_bytes);
  }
  HADAL_RETURN_IF_ERROR(training.flush());
  HADAL_RETURN_IF_ERROR(held_out.flush());
  summary.tokens = training.total();
  summary.held_out_tokens = held_out.total();
  summary.shards = training.shards();
  if (summary.tokens == 0) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: no document in it{}", files[0],
                            summary.held_out_tokens > 0 ? " but those held out; hold out less" : ""));
  }
  return summary;
}

}  // namespace hadal
