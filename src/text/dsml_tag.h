// The tags of DSML, the markup of tool calls in the model's output, recognised at the beginning of text that
// may not be all there yet.
//
// The model writes `<｜DSML｜invoke name="f">`; long outputs are seen to drift to `<|DSML|invoke`,
// `<DSML｜invoke` or plain `<invoke`, so a tag is `<`, perhaps `/`, one of these markers, and a name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace hadal {

enum class TagName : std::uint8_t {
  block,      // tool_calls, and what other releases call it: function_calls, calls
  invoke,     // one call
  parameter,  // one argument
};

struct Tag {
  bool closing = false;
  std::string_view marker;  // static storage; empty: plain XML
  TagName name = TagName::block;
  std::size_t length = 0;  // bytes from `<` to the end of the name
};

enum class Match : std::uint8_t {
  no,
  partial,  // more text may make it one
  yes,
};

// Every marker that is taken for one, but for the empty one of plain XML.
std::span<const std::string_view> dsml_markers();

// Whether `text`, which begins with `<`, begins with a tag; writes `tag` if so.
Match match_tag(std::string_view text, bool accept_plain, Tag& tag);

// A tag whose marker is misspelt, `<｜DML｜parameter`: anything short without spaces or brackets before the
// name. For places where nothing but tags is expected. The marker that it is given is the usual one.
Match match_misspelt_tag(std::string_view text, Tag& tag);

// A tag that stands alone in text, or a marker without its `<`, whatever name follows; `length` is that of
// all of it up to the `>`, if there is one on the same line, or else up to the end of the name.
Match match_stray_tag(std::string_view text, std::size_t& length);

// The same for a fixed string.
Match match_literal(std::string_view text, std::string_view literal);

bool is_tag_name_character(char c);  // also of the name of an attribute

// The attributes of an opening tag as loosely as they come: any order, single, double or no quotes, any
// space.
struct TagAttributes {
  std::optional<std::string> name;
  std::optional<std::string> string;
  std::size_t length = 0;  // up to and with the `>`
};

// From what follows the name of a tag. Nothing if there is no `>`.
std::optional<TagAttributes> parse_attributes(std::string_view header);

}  // namespace hadal
