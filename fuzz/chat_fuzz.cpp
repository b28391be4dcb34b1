// Any bytes as a messages file: an error or a prompt, never a crash. Of a prompt: it is valid UTF-8, control
// segments are single special tokens, and JSON printed once reads back to the same print.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "text/chat_encoder.h"
#include "text/utf8.h"

namespace {

void check_prompt(const std::vector<hadal::PromptSegment>& prompt) {
  for (const hadal::PromptSegment& segment : prompt) {
    HADAL_CHECK(!segment.text.empty());
    const std::string_view text = segment.text;
    if (segment.control) {
      HADAL_CHECK(text == "｜DSML｜" || (text.front() == '<' && text.find('>') == text.size() - 1));
    }
  }
  HADAL_CHECK(hadal::is_valid_utf8(hadal::prompt_text(prompt)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::uint8_t choice = data[0];
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto json = hadal::parse_json(text, {.python_constants = true});
  if (!json) return 0;
  const std::string printed = hadal::to_python_json(*json);
  const auto again = hadal::parse_json(printed, {.python_constants = true});
  HADAL_CHECK(again.has_value());
  HADAL_CHECK(hadal::to_python_json(*again) == printed);

  const auto messages = hadal::messages_from_json(*json);
  if (!messages) return 0;
  hadal::ChatOptions options;
  options.thinking = (choice & 1) != 0;
  options.drop_thinking = (choice & 2) != 0;
  options.add_bos = (choice & 4) != 0;
  if ((choice & 8) != 0) options.reasoning_effort = "max";
  const hadal::ChatDialect& dialect = (choice & 16) != 0 ? hadal::dialect_v4() : hadal::dialect_v4_0731();
  const std::size_t n_seen = (choice & 32) != 0 ? messages->size() / 2 : 0;
  const std::span<const hadal::ChatMessage> all(*messages);
  const auto prompt = hadal::encode_chat(dialect, all.subspan(n_seen), options, all.first(n_seen));
  if (prompt) check_prompt(*prompt);
  return 0;
}
