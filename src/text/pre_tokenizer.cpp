#include "text/pre_tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "text/pattern.h"

namespace hadal {
namespace {

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

// The major version of Unicode that the linked PCRE2 knows; 0 if it cannot be told.
int unicode_version() {
  std::array<char, 64> buffer{};
  if (pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, buffer.data()) < 0) return 0;
  int major = 0;
  std::from_chars(buffer.data(), buffer.data() + buffer.size(), major);
  return major;
}

}  // namespace

PreTokenizer::Scratch::Scratch(const PreTokenizer& pre_tokenizer)
    : context_(pcre2_match_context_create(nullptr)) {
  HADAL_CHECK(context_ != nullptr);
  for (std::size_t i = 0; i < pre_tokenizer.patterns_.size(); ++i) {
    match_data_.emplace_back(pcre2_match_data_create(1, nullptr));
    HADAL_CHECK(match_data_.back() != nullptr);
  }
}

Result<PreTokenizer> PreTokenizer::create(std::span<const std::string> patterns) {
  if (patterns.size() > kMaxPatterns) {
    return fail(ErrorCode::unsupported,
                fmt::format("{} Split patterns, hadal takes at most {}", patterns.size(), kMaxPatterns));
  }
  PreTokenizer result;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    const auto refuse = [&](std::string_view why) {
      return fail(ErrorCode::unsupported, fmt::format("Split pattern {}: {}", i, why));
    };
    auto translated = translate_pattern(patterns[i], unicode_version());
    if (!translated) return refuse(translated.error().message());
    const std::string pattern = std::move(*translated);

    int error = 0;
    PCRE2_SIZE offset = 0;
    std::unique_ptr<pcre2_code, CodeFree> code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                                                             pattern.size(), PCRE2_UTF | PCRE2_UCP, &error,
                                                             &offset, nullptr));
    if (code == nullptr) return refuse(fmt::format("PCRE2 does not compile it: {}", pcre2_message(error)));
    std::uint32_t matches_empty = 0;
    pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty != 0) return refuse("it matches the empty string");
    // Without a JIT (not built for this machine, or no executable memory to be had) PCRE2 interprets.
    const bool jit = pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE) == 0;
    result.patterns_.push_back({std::move(code), jit});
  }
  return result;
}

void PreTokenizer::set_match_limit(std::size_t n_bytes, Scratch& scratch) {
  constexpr std::size_t kLeast = 1'000'000;
  constexpr std::size_t kPerByte = 16;
  const std::size_t limit = std::min<std::size_t>(kLeast + n_bytes * kPerByte, UINT32_MAX);
  pcre2_set_match_limit(scratch.context_.get(), static_cast<std::uint32_t>(limit));
}

Status PreTokenizer::match_error(std::size_t pattern, int code) {
  return fail(ErrorCode::resource_exhausted,
              fmt::format("Split pattern {} gave up on the text: {}", pattern, pcre2_message(code)));
}

}  // namespace hadal
