// The pre-tokeniser: tokenizer.json's Split patterns, one after another, cut a text into the pieces within
// which byte pairs are merged. Each pattern is applied to every piece of the one before, its matches and the
// stretches between them alike ("behavior": "Isolated"); a pattern sees nothing beyond its piece, so
// `(?!\S)` holds at a piece's end. The patterns run in PCRE2, compiled by its JIT where it has one.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace hadal {

class PreTokenizer {
 public:
  struct CodeFree {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  struct MatchContextFree {
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  };
  struct MatchDataFree {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };

  // What one thread at a time needs to split.
  class Scratch {
   public:
    explicit Scratch(const PreTokenizer& pre_tokenizer);

   private:
    friend class PreTokenizer;
    std::unique_ptr<pcre2_match_context, MatchContextFree> context_;
    std::vector<std::unique_ptr<pcre2_match_data, MatchDataFree>> match_data_;  // one per pattern
  };

  // `patterns` in Oniguruma's dialect (text/pattern.h). Error: unsupported, naming the pattern by its place.
  static Result<PreTokenizer> create(std::span<const std::string> patterns);

  // Calls emit(std::string_view piece) for the pieces of `text`, in order; together they are `text`, and none
  // is empty. `text` must be valid UTF-8. Error: resource_exhausted, when a pattern backtracks beyond PCRE2's
  // limit; some pieces may have been given by then.
  template <class Emit>
  Status split(std::string_view text, Scratch& scratch, Emit&& emit) const {
    if (text.empty()) return {};
    set_match_limit(text.size(), scratch);
    return split_by(0, text, scratch, emit);
  }

 private:
  static constexpr std::size_t kMaxPatterns = 16;

  struct Pattern {
    std::unique_ptr<pcre2_code, CodeFree> code;
    bool jit = false;
  };

  // The next match at or after `from`: PCRE2's return code, the match itself in the pattern's match data.
  int match(std::size_t pattern, std::string_view text, std::size_t from, Scratch& scratch) const {
    pcre2_match_data* const data = scratch.match_data_[pattern].get();
    pcre2_match_context* const context = scratch.context_.get();
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const Pattern& p = patterns_[pattern];
    return p.jit
               ? pcre2_jit_match(p.code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, data, context)
               : pcre2_match(p.code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, data, context);
  }

  template <class Emit>
  Status split_by(std::size_t pattern, std::string_view text, Scratch& scratch, Emit& emit) const {
    if (pattern == patterns_.size()) {
      emit(text);
      return {};
    }
    const PCRE2_SIZE* const match_at = pcre2_get_ovector_pointer(scratch.match_data_[pattern].get());
    for (std::size_t done = 0; done < text.size();) {
      const int code = match(pattern, text, done, scratch);
      if (code < 0 && code != PCRE2_ERROR_NOMATCH) return match_error(pattern, code);
      // No pattern matches the empty string (create() saw to it), so `done` advances.
      const std::size_t begin = code < 0 ? text.size() : match_at[0];
      const std::size_t end = code < 0 ? text.size() : match_at[1];
      if (begin > done) {
        HADAL_RETURN_IF_ERROR(split_by(pattern + 1, text.substr(done, begin - done), scratch, emit));
      }
      if (end > begin) {
        HADAL_RETURN_IF_ERROR(split_by(pattern + 1, text.substr(begin, end - begin), scratch, emit));
      }
      done = end;
    }
    return {};
  }

  // A match may take back every character of a run once for each quantifier in the pattern, as `\s*[\r\n]+`
  // does on spaces; what needs many times that is a pattern gone wrong.
  static void set_match_limit(std::size_t n_bytes, Scratch& scratch);

  static Status match_error(std::size_t pattern, int code);

  std::vector<Pattern> patterns_;
};

}  // namespace hadal
