// From text to shards of tokens: files of plain text (each a document), JSONL with {"text": ...} lines, and
// JSONL with {"messages": [...]} lines, conversations in the V4 chat encoding of which only what the
// assistant says counts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <hadal/error.h>
#include <hadal/tokenizer.h>

#include "base/thread_pool.h"
#include "text/chat_encoder.h"

namespace hadal {

struct CorpusOptions {
  double held_out = 0;                     // share of each document's end (text) or of the documents (JSONL)
  std::int64_t shard_tokens = 64'000'000;  // most tokens in one shard
  std::int32_t bos = 0, eos = 1;
  bool document_marks = true;  // BOS before and EOS behind every document of text (conversations have theirs)
  std::uint64_t tokenizer_hash = 0;
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // bytes
};

struct CorpusSummary {
  std::int64_t documents = 0, tokens = 0, counted = 0, held_out_tokens = 0, bytes = 0;
  std::int64_t shards = 0;
};

// Writes OUT/shard-NNNNN.tok and, with held_out, OUT/held_out/shard-NNNNN.tok. A name that ends in .jsonl is
// JSONL, any other text. Errors: invalid_argument (an empty or binary file, a malformed line: with file, line
// and byte), not_found, io, resource_exhausted.
Result<CorpusSummary> build_corpus(const Tokenizer& tokenizer, std::span<const std::string> files,
                                   const std::filesystem::path& out, const CorpusOptions& options,
                                   ThreadPool& pool);

// The tokens of a conversation and whether each is the assistant's: everything from behind <｜Assistant｜>
// and its thinking mark to EOS, EOS too.
struct MarkedTokens {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint8_t> counts;
};
Result<MarkedTokens> mark_assistant(const Tokenizer& tokenizer, const ChatDialect& dialect,
                                    std::span<const ChatMessage> messages, const ChatOptions& options);

}  // namespace hadal
