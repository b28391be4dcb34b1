// Any bytes as the output of a model: the parser gives the same message however they are cut, text is valid
// UTF-8, and the arguments of complete calls are valid JSON.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/check.h"
#include "base/rng.h"
#include "text/output_parser.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::uint8_t choice = data[0];
  const std::uint8_t seed = data[1];
  std::string_view output(reinterpret_cast<const char*>(data) + 2, size - 2);

  hadal::OutputParserOptions options;
  options.thinking = (choice & 1) != 0;
  options.tool_calls = (choice & 2) == 0;
  options.plain_xml = (choice & 4) != 0;
  options.starts_in_tool_calls = (choice & 8) != 0;
  options.mends_tags = (choice & 32) != 0;
  if ((choice & 16) != 0) {
    options.schemas = std::make_shared<
        const hadal::ToolSchemas>(hadal::tool_schemas_from_json(*hadal::parse_json(
        R"([{"function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}, "b": {"type":
             "object", "properties": {"a": {"type": "boolean"}}}, "x": {"type": ["string", "null"]}}}}}])")));
  }
  (void)hadal::parse_output_strict(output, options.thinking);
  const hadal::ParsedMessage whole = hadal::parse_output(output, options);
  HADAL_CHECK(hadal::is_valid_utf8(whole.content) && hadal::is_valid_utf8(whole.reasoning_content));
  for (const hadal::ParsedToolCall& call : whole.tool_calls) {
    HADAL_CHECK(hadal::is_valid_utf8(call.name));
    const auto arguments = hadal::parse_json(call.arguments);
    HADAL_CHECK(arguments.has_value() && arguments->is_object());
  }

  hadal::OutputParser parser(options);
  std::vector<hadal::OutputEvent> events;
  const hadal::Philox random(seed, 0);
  for (std::uint64_t n = 0; !output.empty(); ++n) {
    const double most = (seed & 1) != 0 ? 3 : 30;
    const std::size_t take = std::min(output.size(), 1 + static_cast<std::size_t>(random.uniform(n) * most));
    parser.feed(output.substr(0, take), events);
    output.remove_prefix(take);
  }
  parser.finish(events);
  for (const hadal::OutputEvent& event : events) HADAL_CHECK(hadal::is_valid_utf8(event.text));
  HADAL_CHECK(hadal::fold_events(events) == whole);
  return 0;
}
