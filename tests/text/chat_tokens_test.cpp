// The chat encoding and the tokenizer together: which control ids a prompt holds.
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <hadal/tokenizer.h>

#include "text/chat_cases.h"
#include "text/chat_encoder.h"

namespace hadal {
namespace {

using Ids = std::vector<std::int32_t>;

Ids encode(const Tokenizer& tokenizer, const std::vector<PromptSegment>& prompt) {
  std::vector<TextSegment> segments;
  for (const PromptSegment& segment : prompt) segments.push_back({segment.text, segment.control});
  const auto ids = tokenizer.encode(segments);
  EXPECT_TRUE(ids) << ids.error().message();
  return ids.value_or(Ids());
}

// Of the default model, which knows the special tokens of DeepSeek-V4.
Tokenizer default_tokenizer() {
  auto tokenizer = Tokenizer::load(HADAL_TEST_DATA "/../../models/default/tokenizer.json");
  if (!tokenizer) throw std::runtime_error(tokenizer.error().message());
  return std::move(*tokenizer);
}

// In every golden prompt: as many control ids as the template wrote tokens, whatever the messages say, and
// the ids of a prompt whose messages name no special token are those of its text as a whole.
TEST(ChatTokens, ControlIdsAreThoseOfTheTemplate) {
  const Tokenizer tokenizer = default_tokenizer();
  const JsonValue cases = load_cases("encoding_cases.json");
  int n_clean = 0;
  int n_with_special_text = 0;
  for (const JsonValue& one : cases.items) {
    const auto options = chat_options_from_json(*one.find("options"));
    const auto messages = messages_from_json(*one.find("messages"));
    if (!options || !messages) continue;
    const auto prompt = encode_chat(dialect_v4_0731(), *messages, *options);
    if (!prompt) continue;
    const std::string name = string_member(one, "name");
    const Ids ids = encode(tokenizer, *prompt);
    Ids control;
    for (const std::int32_t id : ids) {
      if (tokenizer.is_added(id)) control.push_back(id);
    }
    Ids expected;
    bool special_text = false;
    for (const PromptSegment& segment : *prompt) {
      if (segment.control) {
        const auto id = tokenizer.id_of(segment.text);
        ASSERT_TRUE(id && tokenizer.is_added(*id)) << segment.text;
        expected.push_back(*id);
      }
      for (const char* token : {"<｜", "｜DSML｜", "<think>", "</think>"}) {
        special_text = special_text || (!segment.control && segment.text.find(token) != std::string::npos);
      }
    }
    EXPECT_EQ(control, expected) << name;
    const Ids whole = tokenizer.encode_with_specials(prompt_text(*prompt)).value();
    if (special_text) {
      EXPECT_NE(ids, whole) << name;
      ++n_with_special_text;
    } else {
      EXPECT_EQ(ids, whole) << name;
      ++n_clean;
    }
    EXPECT_EQ(tokenizer.decode(ids).value(), prompt_text(*prompt)) << name;
  }
  EXPECT_EQ(n_clean + n_with_special_text, 129);
  EXPECT_GE(n_with_special_text, 2);
}

}  // namespace
}  // namespace hadal
