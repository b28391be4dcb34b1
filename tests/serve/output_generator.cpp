#include "serve/output_generator.h"

#include <algorithm>
#include <array>

#include "text/json_value.h"

namespace hadal::test {

const std::string_view kOutputTools =
    R"([{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"s": {"type":)"
    R"( "string"}, "n": {"type": "integer"}, "o": {"type": "object", "properties": {"k": {"type": "boolean"}}},)"
    R"( "any": {}}}}}, {"type": "function", "function": {"name": "g"}}])";

namespace {

constexpr std::string_view kDsml = "｜DSML｜";

constexpr std::array<std::string_view, 25> kWords = {
    "Hallo", "a",  "tea. ", "42",   "x<y", "{\"k\": 1}", "naïve",  "🌍", "北京，", "\t", "\"", "\\", "2>&1",
    "<b>",   "</", "&lt;",  "\r\n", "｜",  "null",       "</div>", "'", "\x01",   "]",  "}",  " "};

constexpr std::array<std::string_view, 24> kFragments = {"<｜DSML｜tool_calls>",
                                                         "</｜DSML｜tool_calls>",
                                                         "<｜DSML｜invoke name=\"f\">",
                                                         "</｜DSML｜invoke>",
                                                         "<｜DSML｜parameter name=\"s\" string=\"true\">",
                                                         "</｜DSML｜parameter>",
                                                         "</think>",
                                                         "<think>",
                                                         "\n\n",
                                                         "<｜DSML｜",
                                                         "｜DSML｜",
                                                         "|DSML|",
                                                         "<|DSML|invoke name=\"f\">",
                                                         "<tool_calls>",
                                                         "<invoke name=\"g\">",
                                                         "</invoke>",
                                                         "<｜end▁of▁sentence｜>",
                                                         "<｜User｜>",
                                                         "\xff",
                                                         "\xe2\x82",
                                                         "\xf0\x9f",
                                                         "\xed\xa0\x80",
                                                         "string=\"false\">",
                                                         "<｜DSML｜function_calls>"};

}  // namespace

OutputGenerator::OutputGenerator(Tokenizer tokenizer, std::uint64_t seed)
    : tokenizer_(std::move(tokenizer)), random_(seed) {
  for (std::int32_t id = 0; id < tokenizer_.vocab_size(); ++id) {
    if (tokenizer_.is_added(id)) {
      specials_.push_back(id);
    } else if (const auto bytes = tokenizer_.token_bytes(id); !bytes.empty()) {
      ids_.emplace(bytes, id);
    }
  }
}

std::string OutputGenerator::text(std::size_t most) {
  std::string out;
  for (std::size_t n = 1 + below(most); n > 0; --n) {
    out += kWords[below(kWords.size())];
    if (chance(40)) out += chance(80) ? " " : "\n";
  }
  return out;
}

std::string OutputGenerator::turn(bool thinking, bool tools, ParsedMessage& meaning) {
  // Line breaks at the border of a part are nobody's.
  const auto trim = [](std::string part) {
    part.erase(0, part.find_first_not_of("\r\n"));
    part.resize(part.find_last_not_of("\r\n") + 1);
    return part;
  };
  std::string out;
  if (thinking) {
    meaning.reasoning_content = trim(text(12));
    out += meaning.reasoning_content + "</think>";
  }
  const bool calls = tools && chance(70);
  if (!calls || chance(50)) meaning.content = trim(text(12));
  out += meaning.content;
  if (!calls) return out;
  meaning.end = OutputEnd::tool_calls;
  out.append("\n\n<").append(kDsml).append("tool_calls>\n");
  for (std::size_t n = 1 + below(3); n > 0; --n) {
    ParsedToolCall call{chance(70) ? "f" : "g", "{"};
    out.append("<").append(kDsml).append("invoke name=\"" + call.name + "\">\n");
    const auto add = [&](std::string_view name, bool is_string, const std::string& value) {
      out.append("<").append(kDsml).append("parameter name=\"").append(name);
      out.append(is_string ? "\" string=\"true\">" : "\" string=\"false\">").append(value);
      out.append("</").append(kDsml).append("parameter>\n");
      if (call.arguments.size() > 1) call.arguments += ", ";
      append_json_string(call.arguments, name);
      call.arguments += ": ";
      if (is_string) {
        append_json_string(call.arguments, value);
      } else {
        call.arguments += value;
      }
    };
    if (call.name == "f") {
      if (chance(60)) add("s", true, text(10));
      if (chance(40)) add("n", false, std::to_string(below(1000)));
      if (chance(40)) add("o", false, chance(50) ? R"({"k": true, "x": [1, "</b>"]})" : "{}");
      if (chance(30)) add("any", false, chance(50) ? "null" : "12345678901234567890123");
    }
    call.arguments += '}';
    meaning.tool_calls.push_back(std::move(call));
    out.append("</").append(kDsml).append("invoke>\n");
  }
  out.append("</").append(kDsml).append("tool_calls>");
  return out;
}

std::string OutputGenerator::damaged(std::string output, int n) {
  for (; n > 0; --n) {
    const std::size_t at = below(output.size() + 1), length = 1 + below(chance(50) ? 3 : 40);
    switch (below(6)) {
      case 0:
        output.erase(at, length);
        break;
      case 1:
        output.insert(at, output.substr(at, length));
        break;
      case 2: {
        const std::string piece = output.substr(at, length);
        output.erase(at, length);
        output.insert(below(output.size() + 1), piece);
        break;
      }
      case 3:
        if (at < output.size()) output[at] = static_cast<char>(below(256));
        break;
      case 4:
        if (chance(30)) output.resize(at);
        break;
      default:
        output.insert(at, kFragments[below(kFragments.size())]);
    }
  }
  return output;
}

std::vector<std::int32_t> OutputGenerator::tokens(std::string_view bytes) {
  std::vector<std::int32_t> ids;
  while (!bytes.empty()) {
    if (bytes.front() == '<' || bytes.starts_with(kDsml)) {
      const auto special = std::find_if(specials_.begin(), specials_.end(), [&](std::int32_t id) {
        return bytes.starts_with(tokenizer_.token_bytes(id));
      });
      if (special != specials_.end() && chance(80)) {
        ids.push_back(*special);
        bytes.remove_prefix(tokenizer_.token_bytes(*special).size());
        continue;
      }
    }
    add_ordinary(bytes, ids);
  }
  return ids;
}

void OutputGenerator::add_ordinary(std::string_view& bytes, std::vector<std::int32_t>& ids) {
  for (std::size_t length = std::min<std::size_t>(bytes.size(), 1 + below(12)); length > 0; --length) {
    const auto known = ids_.find(bytes.substr(0, length));
    if (known == ids_.end()) continue;  // every single byte is known
    ids.push_back(known->second);
    return bytes.remove_prefix(length);
  }
}

std::vector<std::int32_t> OutputGenerator::cut_anew(const std::vector<std::int32_t>& tokens) {
  std::vector<std::int32_t> ids;
  std::string run;
  const auto add_run = [&] {
    for (std::string_view bytes = run; !bytes.empty();) add_ordinary(bytes, ids);
    run.clear();
  };
  for (const std::int32_t token : tokens) {
    if (tokenizer_.is_added(token)) {
      add_run();
      ids.push_back(token);
    } else {
      run += tokenizer_.token_bytes(token);
    }
  }
  add_run();
  return ids;
}

}  // namespace hadal::test
