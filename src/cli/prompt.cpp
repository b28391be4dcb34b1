#include "cli/prompt.h"

#include <fmt/format.h>

#include "text/utf8.h"

namespace hadal::cli {

ChatOptions chat_options(const ChatDialect& dialect, const std::string& think) {
  ChatOptions options;
  options.thinking = think != "off";
  if (options.thinking) options.reasoning_effort = std::string(dialect.effort_for(think));
  return options;
}

ChatMessage text_message(std::string role, std::string content) {
  ChatMessage message;
  message.role = std::move(role);
  message.content = std::move(content);
  return message;
}

Result<std::vector<std::int32_t>> encode_turn(const Tokenizer& tokenizer, const ChatDialect& dialect,
                                              const ChatOptions& options,
                                              std::span<const ChatMessage> messages,
                                              std::span<const ChatMessage> context) {
  HADAL_ASSIGN_OR_RETURN(const auto prompt, encode_chat(dialect, messages, options, context));
  std::vector<TextSegment> segments;
  segments.reserve(prompt.size());
  for (const PromptSegment& segment : prompt) segments.push_back({segment.text, segment.control});
  return tokenizer.encode(segments);
}

Status check_utf8(std::string_view text, std::string_view what) {
  const std::size_t valid = valid_utf8_prefix(text);
  if (valid == text.size()) return {};
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is not valid UTF-8 at byte {}; convert it to UTF-8 first", what, valid));
}

std::string describe(const Generation& generation) {
  const auto rate = [](double n, double seconds) { return seconds > 0 ? n / seconds : 0; };
  const auto read = static_cast<double>(generation.prompt_tokens);
  // The first token comes out of the prompt's own forward; every further one takes a forward.
  const auto written = static_cast<double>(generation.tokens.size());
  return fmt::format("{} tokens read in {:.2f} s ({:.1f} tokens/s), {} written in {:.2f} s ({:.2f} tokens/s)",
                     generation.prompt_tokens, generation.prefill_seconds,
                     rate(read, generation.prefill_seconds), generation.tokens.size(),
                     generation.decode_seconds,
                     rate(written > 1 ? written - 1 : written, generation.decode_seconds));
}

void add_sampling_options(CLI::App& command, SamplingOptions& sampling) {
  command.add_option("--temp", sampling.temperature, "Temperature; 0 is greedy")->capture_default_str();
  command.add_option("--top-p", sampling.top_p, "Keep the most likely tokens up to this probability")
      ->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "Keep the k most likely tokens; 0 for all")
      ->capture_default_str();
  command
      .add_option("--min-p", sampling.min_p,
                  "Keep tokens with at least this share of the best one's probability")
      ->capture_default_str();
  command.add_option("--seed", sampling.seed, "Of the random draws; the same seed gives the same text")
      ->capture_default_str();
}

}  // namespace hadal::cli
