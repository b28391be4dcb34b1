// From what a user types to the tokens that the model reads, in the model's own chat encoding.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <hadal/engine.h>

#include "text/chat_encoder.h"

namespace hadal::cli {

// --think: off (chat mode), or low, high or max (thinking mode with that effort).
ChatOptions chat_options(const ChatDialect& dialect, const std::string& think);

// A message that is only text.
ChatMessage text_message(std::string role, std::string content);

// The tokens of `messages` after `context`, which the model has read.
Result<std::vector<std::int32_t>> encode_turn(const Tokenizer& tokenizer, const ChatDialect& dialect,
                                              const ChatOptions& options,
                                              std::span<const ChatMessage> messages,
                                              std::span<const ChatMessage> context = {});

// invalid_argument, with the offset, if `text` is not UTF-8.
Status check_utf8(std::string_view text, std::string_view what);

// "300 tokens read in 3.1 s (97 tokens/s), 16 written in 2.2 s (7.3 tokens/s)"
std::string describe(const Generation& generation);

// Adds --temp, --top-p, --top-k, --min-p and --seed.
void add_sampling_options(CLI::App& command, SamplingOptions& sampling);

}  // namespace hadal::cli
