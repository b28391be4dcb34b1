// The acceptance of DeepSeek's official parser, for comparison with it: what it raises on is an error here,
// what it returns is returned here. Nothing of this is used to serve a model.
#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "text/output_parser.h"
#include "text/utf8.h"

namespace hadal {
namespace {

constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kStrictEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kThinkStart = "<think>";
constexpr std::string_view kStrictThinkEnd = "</think>";
constexpr std::string_view kDsml = "｜DSML｜";
constexpr std::string_view kBlockBegin = "\n\n<｜DSML｜tool_calls";
constexpr std::string_view kBlockEnd = "</｜DSML｜tool_calls>";
constexpr std::string_view kInvokeBegin = "<｜DSML｜invoke";
constexpr std::string_view kInvokeEnd = "</｜DSML｜invoke";
constexpr std::string_view kParameterBegin = "<｜DSML｜parameter";
constexpr std::string_view kParameterEnd = "/｜DSML｜parameter";

tl::unexpected<Error> malformed(std::string message) {
  return fail(ErrorCode::corrupt, std::move(message));
}

// Reads text up to the first of some strings.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  struct Piece {
    std::string_view content;
    std::string_view stop;  // which string ended it; empty: the end of the text
  };

  Piece until(std::string_view stop, std::string_view other_stop = {}) {
    std::size_t first = text_.find(stop, at_);
    if (!other_stop.empty()) {
      if (const std::size_t other = text_.find(other_stop, at_); other < first) {
        first = other;
        stop = other_stop;
      }
    }
    const std::size_t begin = at_;
    if (first == std::string_view::npos) {
      at_ = text_.size();
      return {text_.substr(begin), {}};
    }
    at_ = first + stop.size();
    return {text_.substr(begin, first - begin), stop};
  }

  bool at_end() const { return at_ == text_.size(); }

 private:
  std::string_view text_;
  std::size_t at_ = 0;
};

// Past what the regular expression \s* matches in Python text (all of Unicode's white space).
std::string_view skip_unicode_space(std::string_view text) {
  constexpr std::array<std::string_view, 29> kSpaces = {" ",
                                                        "\t",
                                                        "\n",
                                                        "\v",
                                                        "\f",
                                                        "\r",
                                                        "\x1C",
                                                        "\x1D",
                                                        "\x1E",
                                                        "\x1F",
                                                        "\xC2\x85",
                                                        "\xC2\xA0",
                                                        "\xE1\x9A\x80",
                                                        "\xE2\x80\x80",
                                                        "\xE2\x80\x81",
                                                        "\xE2\x80\x82",
                                                        "\xE2\x80\x83",
                                                        "\xE2\x80\x84",
                                                        "\xE2\x80\x85",
                                                        "\xE2\x80\x86",
                                                        "\xE2\x80\x87",
                                                        "\xE2\x80\x88",
                                                        "\xE2\x80\x89",
                                                        "\xE2\x80\x8A",
                                                        "\xE2\x80\xA8",
                                                        "\xE2\x80\xA9",
                                                        "\xE2\x80\xAF",
                                                        "\xE2\x81\x9F",
                                                        "\xE3\x80\x80"};
  for (;;) {
    const auto space =
        std::find_if(kSpaces.begin(), kSpaces.end(), [&](std::string_view s) { return text.starts_with(s); });
    if (space == kSpaces.end()) return text;
    text.remove_prefix(space->size());
  }
}

// ^\s*name="(.*?)">\n$ where $ also matches before a newline at the end.
std::optional<std::string_view> match_invoke_header(std::string_view header) {
  constexpr std::string_view kName = "name=\"";
  header = skip_unicode_space(header);
  if (!header.starts_with(kName)) return std::nullopt;
  header.remove_prefix(kName.size());
  for (const std::string_view ending : {"\">\n\n", "\">\n"}) {
    if (header.ends_with(ending)) return header.substr(0, header.size() - ending.size());
  }
  return std::nullopt;
}

struct Parameter {
  std::string_view name;
  bool is_string;
  std::string_view value;
};

// ^ name="(.*?)" string="(true|false)">(.*?)<$
std::optional<Parameter> match_parameter(std::string_view text) {
  constexpr std::string_view kName = " name=\"";
  constexpr std::string_view kIsString = "\" string=\"true\">";
  constexpr std::string_view kIsJson = "\" string=\"false\">";
  if (!text.starts_with(kName)) return std::nullopt;
  text.remove_prefix(kName.size());
  const std::size_t is_string = text.find(kIsString);
  const std::size_t is_json = text.find(kIsJson);
  const std::size_t end_of_name = std::min(is_string, is_json);
  if (end_of_name == std::string_view::npos) return std::nullopt;
  Parameter parameter{text.substr(0, end_of_name), is_string < is_json, {}};
  parameter.value = text.substr(end_of_name + (parameter.is_string ? kIsString : kIsJson).size());
  for (const std::string_view ending : {"<\n", "<"}) {
    if (!parameter.value.ends_with(ending)) continue;
    parameter.value.remove_suffix(ending.size());
    return parameter;
  }
  return std::nullopt;
}

Result<ParsedToolCall> parse_call(Reader& reader) {
  Reader::Piece piece = reader.until(kParameterBegin, kInvokeEnd);
  const auto name = match_invoke_header(piece.content);
  if (!name) return malformed(fmt::format("tool name format error: {}", quoted(piece.content)));
  ParsedToolCall call{std::string(*name), "{"};
  std::vector<std::string_view> names;
  while (piece.stop == kParameterBegin) {
    piece = reader.until(kParameterEnd);
    const auto parameter = match_parameter(piece.content);
    if (!parameter) return malformed(fmt::format("parameter format error: {}", quoted(piece.content)));
    if (std::find(names.begin(), names.end(), parameter->name) != names.end()) {
      return malformed(fmt::format("duplicate parameter name: {}", quoted(parameter->name)));
    }
    if (!names.empty()) call.arguments += ", ";
    names.push_back(parameter->name);
    append_json_string(call.arguments, parameter->name);
    call.arguments += ": ";
    if (parameter->is_string) {
      append_json_string(call.arguments, parameter->value);
    } else {
      call.arguments += parameter->value;
    }
    piece = reader.until(kParameterBegin, kInvokeEnd);
    if (piece.content != ">\n") {
      return malformed(
          fmt::format("parameter format error: expected '>\\n' but got {}", quoted(piece.content)));
    }
  }
  call.arguments += '}';
  return call;
}

Status parse_block(Reader& reader, std::vector<ParsedToolCall>& calls) {
  while (!reader.at_end()) {
    const Reader::Piece piece = reader.until(kInvokeBegin, kBlockEnd);
    if (piece.content != ">\n") {
      return malformed(
          fmt::format("tool call format error: expected '>\\n' but got {}", quoted(piece.content)));
    }
    if (piece.stop == kBlockEnd) break;
    if (piece.stop.empty()) return malformed("missing special token in tool calls");
    HADAL_ASSIGN_OR_RETURN(ParsedToolCall call, parse_call(reader));
    calls.push_back(std::move(call));
  }
  return {};
}

}  // namespace

Result<ParsedMessage> parse_output_strict(std::string_view output, bool thinking) {
  if (const std::size_t valid = valid_utf8_prefix(output); valid != output.size()) {
    return malformed(fmt::format("byte {} of the output is not valid UTF-8", valid));
  }
  Reader reader(output);
  ParsedMessage message;
  if (thinking) {
    const Reader::Piece piece = reader.until(kStrictThinkEnd, kBlockBegin);
    if (piece.stop != kStrictThinkEnd) return malformed("invalid thinking format: missing </think>");
    message.reasoning_content = piece.content;
  }
  Reader::Piece piece = reader.until(kStrictEos, kBlockBegin);
  message.content = piece.content;
  if (piece.stop == kBlockBegin) {
    HADAL_RETURN_IF_ERROR(parse_block(reader, message.tool_calls));
    piece = reader.until(kStrictEos);
    if (!piece.content.empty()) return malformed("unexpected content after tool calls");
  } else if (piece.stop != kStrictEos) {
    return malformed("invalid format: missing EOS token");
  }
  if (!reader.at_end()) return malformed("unexpected content at end");
  for (const std::string_view token : {kBos, kStrictEos, kThinkStart, kStrictThinkEnd, kDsml}) {
    if (message.content.find(token) != std::string::npos ||
        message.reasoning_content.find(token) != std::string::npos) {
      return malformed(fmt::format("unexpected special token '{}' in content", token));
    }
  }
  if (!message.tool_calls.empty()) message.end = OutputEnd::tool_calls;
  return message;
}

}  // namespace hadal
