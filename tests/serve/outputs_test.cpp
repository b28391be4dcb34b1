// Any output of a model, through the parser and the answers of the three APIs: no markup leaks, all JSON is
// JSON, the events come in an order that clients accept, and what they add up to does not depend on how the
// output was cut.
//   HADAL_OUTPUTS=1000000 HADAL_SEED=7 build/ci/tests/serve_outputs_test
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include <gtest/gtest.h>

#include <hadal/engine.h>

#include "serve/output_generator.h"
#include "serve/rehearsal.h"
#include "text/chat_dialect.h"
#include "text/json_value.h"
#include "text/utf8.h"

namespace hadal::test {
namespace {

using serve::Api;
using serve::Json;

// What a client has understood in the end.
struct Understood {
  ParsedMessage message;
  bool cut = false;             // ended before it was complete
  bool beyond_doubles = false;  // not read any further
  std::string problem;
};

class Client {
 public:
  Understood stream(Api api, const std::string& body) {
    understood_ = {};
    if (!is_valid_utf8(body)) problem("not UTF-8");
    std::size_t at = 0;
    while (at < body.size()) {
      std::size_t end = body.find("\n\n", at);
      if (end == std::string::npos) return problem("an event without an end");
      std::string_view event = std::string_view(body).substr(at, end - at);
      at = end + 2;
      std::string name;
      if (api != Api::chat) {
        const std::size_t line = event.find('\n');
        if (!event.starts_with("event: ") || line == std::string_view::npos)
          return problem("an event without a name");
        name = event.substr(7, line - 7);
        event.remove_prefix(line + 1);
      }
      if (!event.starts_with("data: ") || event.find('\n') != std::string_view::npos)
        return problem("no data");
      event.remove_prefix(6);
      if (over_) return problem("something after the end");
      if (api == Api::chat && event == "[DONE]") {
        over_ = true;
        continue;
      }
      const Json data = Json::parse(event, nullptr, /*allow_exceptions=*/false);
      if (!data.is_object()) return problem("data that is no JSON");
      if (api == Api::chat) chat(data);
      if (api == Api::messages) messages(name, data);
      if (api == Api::responses) responses(name, data);
      if (!understood_.problem.empty()) return understood_;
    }
    if (!over_ || finish_.empty()) return problem("no end");
    return judged();
  }

  Understood whole(Api api, const std::string& body) {
    const Json answer = Json::parse(body, nullptr, /*allow_exceptions=*/false);
    if (!answer.is_object()) {
      // JSON, but with a number that this reader cannot hold: arguments keep their digits.
      understood_.beyond_doubles = parse_json(body).has_value();
      return understood_.beyond_doubles ? understood_ : problem("an answer that is no JSON");
    }
    ParsedMessage& message = understood_.message;
    const auto text = [](const Json& json) {
      return json.is_string() ? json.get<std::string>() : std::string();
    };
    if (api == Api::chat) {
      const Json& choice = answer["choices"][0];
      message.content = text(choice["message"]["content"]);
      if (choice["message"].contains("reasoning_content"))
        message.reasoning_content = text(choice["message"]["reasoning_content"]);
      if (choice["message"].contains("tool_calls")) {
        for (const Json& call : choice["message"]["tool_calls"])
          message.tool_calls.push_back({text(call["function"]["name"]), text(call["function"]["arguments"])});
      }
      finish_ = text(choice["finish_reason"]);
    } else if (api == Api::messages) {
      for (const Json& block : answer["content"]) {
        if (block["type"] == "thinking") message.reasoning_content += text(block["thinking"]);
        if (block["type"] == "text") message.content += text(block["text"]);
        if (block["type"] == "tool_use")
          message.tool_calls.push_back({text(block["name"]), block["input"].dump()});
      }
      finish_ = text(answer["stop_reason"]);
    } else {
      take_output(answer["output"]);
      finish_ = text(answer["status"]);
    }
    return judged();
  }

 private:
  Understood problem(std::string what) {
    if (understood_.problem.empty()) understood_.problem = std::move(what);
    return understood_;
  }
  void expect(bool holds, const char* what) {
    if (!holds) problem(what);
  }

  void chat(const Json& chunk) {
    const Json& choice = chunk["choices"][0];
    const Json& delta = choice["delta"];
    expect(finish_.empty(), "a chunk after the last");
    expect(delta.contains("role") == !begun_, "the role is told once");
    begun_ = true;
    ParsedMessage& message = understood_.message;
    if (delta.contains("reasoning_content") && delta["reasoning_content"].is_string())
      message.reasoning_content += delta["reasoning_content"].get<std::string>();
    if (delta.contains("content") && delta["content"].is_string())
      message.content += delta["content"].get<std::string>();
    if (delta.contains("tool_calls")) {
      const Json& call = delta["tool_calls"][0];
      const std::size_t n = message.tool_calls.size();
      if (call.contains("id")) {
        expect(call["index"] == n, "indices are dense");
        message.tool_calls.push_back({call["function"]["name"], ""});
      } else {
        expect(n > 0 && call["index"] == n - 1, "arguments of the call that is open");
      }
      if (n > 0 || call.contains("id"))
        message.tool_calls.back().arguments += call["function"]["arguments"].get<std::string>();
    }
    if (choice["finish_reason"].is_string()) finish_ = choice["finish_reason"];
  }

  void messages(const std::string& name, const Json& event) {
    expect(event["type"] == name, "the name is the type");
    expect(begun_ || name == "message_start", "begins with message_start");
    begun_ = true;
    ParsedMessage& message = understood_.message;
    if (name == "content_block_start") {
      expect(!open_ && event["index"] == blocks_, "blocks one after another");
      open_ = true;
      block_ = event["content_block"]["type"];
      if (block_ == "tool_use") message.tool_calls.push_back({event["content_block"]["name"], ""});
    } else if (name == "content_block_delta") {
      expect(open_ && event["index"] == blocks_, "a delta of the block that is open");
      const Json& delta = event["delta"];
      const std::string type = delta["type"];
      expect(type == (block_ == "tool_use"        ? "input_json_delta"
                      : block_ == "text"          ? "text_delta"
                      : type == "signature_delta" ? type
                                                  : "thinking_delta"),
             "a delta of the block's kind");
      if (type == "thinking_delta") message.reasoning_content += delta["thinking"].get<std::string>();
      if (type == "text_delta") message.content += delta["text"].get<std::string>();
      if (type == "input_json_delta")
        message.tool_calls.back().arguments += delta["partial_json"].get<std::string>();
    } else if (name == "content_block_stop") {
      expect(open_ && event["index"] == blocks_, "ends the block that is open");
      open_ = false;
      ++blocks_;
    } else if (name == "message_delta") {
      expect(!open_ && finish_.empty(), "one end, after all blocks");
      finish_ = event["delta"]["stop_reason"];
    } else if (name == "message_stop") {
      over_ = true;
    }
  }

  void responses(const std::string& name, const Json& event) {
    expect(event["type"] == name, "the name is the type");
    expect(event["sequence_number"] == sequence_++, "numbered without gaps");
    expect(begun_ || name == "response.created", "begins with response.created");
    begun_ = true;
    if (name == "response.output_item.added") {
      expect(!open_ && event["output_index"] == blocks_, "items one after another");
      open_ = true;
      deltas_.clear();
    } else if (name == "response.output_item.done") {
      expect(open_ && event["output_index"] == blocks_, "ends the item that is open");
      const Json& item = event["item"];
      expect(deltas_ == (item.contains("arguments") ? item["arguments"] : item["content"][0]["text"]),
             "deltas add up");
      items_.push_back(item);
      open_ = false;
      ++blocks_;
    } else if (name.ends_with(".delta")) {
      deltas_ += event["delta"].get<std::string>();
    } else if (name == "response.completed" || name == "response.incomplete") {
      expect(!open_ && event["response"]["output"] == items_, "the whole is what was told");
      take_output(items_);
      finish_ = name.substr(9);
      over_ = true;
    }
  }

  void take_output(const Json& output) {
    ParsedMessage& message = understood_.message;
    for (const Json& item : output) {
      if (item["type"] == "reasoning")
        message.reasoning_content += item["content"][0]["text"].get<std::string>();
      if (item["type"] == "message") message.content += item["content"][0]["text"].get<std::string>();
      if (item["type"] == "function_call") {
        message.tool_calls.push_back({item["name"], item["arguments"]});
        // Every item but the last is complete.
        expect((item["status"] == "completed") || &item == &output.back(), "a call that was not completed");
      }
    }
  }

  Understood judged() {
    ParsedMessage& message = understood_.message;
    understood_.cut = finish_ == "length" || finish_ == "max_tokens" || finish_ == "incomplete";
    for (const ParsedToolCall& call : message.tool_calls) {
      expect(call.name.find("DSML") == std::string::npos, "markup in a name");
      if (understood_.cut && &call == &message.tool_calls.back()) continue;  // it says so
      const auto arguments = parse_json(call.arguments);
      expect(arguments && arguments->is_object(), "arguments that are no JSON object");
    }
    if (finish_ == "tool_calls" || finish_ == "tool_use") expect(!message.tool_calls.empty(), "no call");
    if (finish_ == "stop" || finish_ == "end_turn")
      expect(message.tool_calls.empty(), "calls that are not announced");
    return understood_;
  }

  Understood understood_;
  std::string finish_, block_, deltas_;
  Json items_ = Json::array();
  std::size_t blocks_ = 0;
  std::int64_t sequence_ = 0;
  bool begun_ = false, open_ = false, over_ = false;
};

std::string quoted_tokens(const Tokenizer& tokenizer, const std::vector<std::int32_t>& tokens) {
  std::string text;
  append_json_string(text, to_valid_utf8(tokenizer.decode(tokens).value()));
  return text;
}

// Requests of one kind, of which each output is an answer.
struct Requests {
  bool thinking, tools;
  std::map<Api, Rehearsal::Part> streamed, whole;
};

Requests make_requests(const Rehearsal& rehearsal, bool thinking, bool tools) {
  Requests requests{thinking, tools, {}, {}};
  const Json chat_tools = Json::parse(kOutputTools);
  for (const bool stream : {true, false}) {
    Json chat = {{"model", "m"}, {"stream", stream}, {"messages", {{{"role", "user"}, {"content", "x"}}}}};
    Json messages = chat, responses = chat;
    messages["max_tokens"] = 100'000;
    responses["input"] = "x";
    chat["thinking"] = messages["thinking"] = {{"type", thinking ? "enabled" : "disabled"}};
    responses["reasoning"] = {{"effort", thinking ? "high" : "none"}};
    if (tools) {
      chat["tools"] = chat_tools;
      for (const Json& tool : chat_tools) {
        const Json& function = tool["function"];
        const Json schema = function.contains("parameters") ? function["parameters"] : Json::object();
        messages["tools"].push_back({{"name", function["name"]}, {"input_schema", schema}});
        responses["tools"].push_back(
            {{"type", "function"}, {"name", function["name"]}, {"parameters", schema}});
      }
    }
    auto& parts = stream ? requests.streamed : requests.whole;
    parts.emplace(Api::chat, rehearsal.read(Api::chat, chat.dump(), false).value());
    parts.emplace(Api::messages, rehearsal.read(Api::messages, messages.dump(), false).value());
    parts.emplace(Api::responses, rehearsal.read(Api::responses, responses.dump(), false).value());
  }
  return requests;
}

class Outputs : public testing::Test {
 protected:
  static Tokenizer tokenizer() {
    EngineOptions options;
    options.threads = 1;
    return Engine::open(options).value().tokenizer();
  }

  // Through every API, streamed and, sometimes, whole. Returns what the chat API's client understood.
  Understood answer(const Requests& requests, const std::vector<std::int32_t>& tokens, bool with_whole) {
    Understood first;
    for (const auto& [api, part] : requests.streamed) {
      const Understood heard = Client().stream(api, rehearsal_.answer(part, tokens).answer);
      EXPECT_EQ(heard.problem, "") << "API " << static_cast<int>(api) << " streamed "
                                   << quoted_tokens(rehearsal_.tokenizer(), tokens);
      if (api == Api::chat) first = heard;
      EXPECT_TRUE(heard.cut == first.cut && heard.message == first.message)
          << "API " << static_cast<int>(api) << quoted_tokens(rehearsal_.tokenizer(), tokens);
      if (!with_whole) continue;
      const Understood read = Client().whole(api, rehearsal_.answer(requests.whole.at(api), tokens).answer);
      EXPECT_EQ(read.problem, "") << "API " << static_cast<int>(api) << " whole "
                                  << quoted_tokens(rehearsal_.tokenizer(), tokens);
      if (read.beyond_doubles) continue;
      EXPECT_EQ(read.message.content, heard.message.content);
      EXPECT_EQ(read.message.reasoning_content, heard.message.reasoning_content);
    }
    if (requests.tools) {
      const std::string output = rehearsal_.tokenizer().decode(tokens).value();
      EXPECT_FALSE(leaks(output, first.message.content)) << quoted_tokens(rehearsal_.tokenizer(), tokens);
      EXPECT_FALSE(leaks(output, first.message.reasoning_content))
          << quoted_tokens(rehearsal_.tokenizer(), tokens);
    }
    return first;
  }

  // Whether the text has a marker. One that came about because something was left out of its middle is
  // nobody's fault.
  static bool leaks(const std::string& output, const std::string& text) {
    const std::string_view full = "｜DSML｜";
    const bool drifted = text.find("<|DSML|") != std::string::npos &&
                         output.find("<|DSML|") != std::string::npos &&
                         output.find("<<") == std::string::npos;
    if (text.find(full) == std::string::npos && !drifted) return false;
    for (const std::string_view half :
         {"｜", "｜D", "｜DS", "｜DSM", "｜DSML", "|", "|D", "|DS", "|DSM", "|DSML"}) {
      for (const std::string_view other : {"<", "｜DSML", "|DSML"}) {
        if (output.find(std::string(half).append(other)) != std::string::npos) return false;
      }
    }
    return true;
  }

  static std::int64_t from_environment(const char* name, std::int64_t otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoll(value);
  }

  Rehearsal rehearsal_{tokenizer(), dialect_v4_0731()};
  std::vector<Requests> requests_ = {
      make_requests(rehearsal_, true, true), make_requests(rehearsal_, false, true),
      make_requests(rehearsal_, true, false), make_requests(rehearsal_, false, false)};
};

TEST_F(Outputs, ThatAreWellFormedMeanWhatTheyMean) {
  OutputGenerator generator(rehearsal_.tokenizer(), 1);
  for (int i = 0; i < 500 && !HasFailure(); ++i) {
    const Requests& requests = requests_[generator.below(requests_.size())];
    ParsedMessage meaning;
    const std::string output = generator.turn(requests.thinking, requests.tools, meaning);
    Understood heard = answer(requests, generator.tokens(output), true);
    heard.message.end = meaning.end;
    EXPECT_EQ(heard.message.content, meaning.content) << hadal::quoted(output);
    EXPECT_EQ(heard.message.reasoning_content, meaning.reasoning_content) << hadal::quoted(output);
    EXPECT_TRUE(heard.message.tool_calls == meaning.tool_calls) << hadal::quoted(output);
    EXPECT_FALSE(heard.cut);
  }
}

TEST_F(Outputs, OfAnyKindAreAnsweredProperly) {
  OutputGenerator generator(rehearsal_.tokenizer(),
                            static_cast<std::uint64_t>(from_environment("HADAL_SEED", 2)));
  const std::int64_t n = from_environment("HADAL_OUTPUTS", 2500);
  for (std::int64_t i = 0; i < n && !HasFailure(); ++i) {
    const Requests& requests = requests_[generator.below(8) < 6 ? generator.below(2) : generator.below(4)];
    ParsedMessage meaning;
    const std::string output = generator.damaged(generator.turn(requests.thinking, requests.tools, meaning),
                                                 static_cast<int>(generator.below(7)));
    const std::vector<std::int32_t> tokens = generator.tokens(output);
    const Understood heard = answer(requests, tokens, generator.chance(20));
    if (!generator.chance(20)) continue;
    const Understood again = answer(requests, generator.cut_anew(tokens), false);
    EXPECT_TRUE(heard.message == again.message) << hadal::quoted(output);
  }
}

TEST_F(Outputs, KeepTheDigitsOfNumbers) {
  const std::string output =
      "</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"any\" "
      "string=\"false\">"
      "[1e400, 1.0, 12345678901234567890123]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
  const auto tokens = rehearsal_.tokenizer().encode_with_specials(output).value();
  const auto answered = rehearsal_.answer(requests_[0].whole.at(Api::messages), tokens).answer;
  EXPECT_NE(answered.find(R"("input":{"any": [1e400, 1.0, 12345678901234567890123]})"), std::string::npos)
      << answered;
}

TEST_F(Outputs, CutOffAnywhereAreAnsweredProperly) {
  OutputGenerator generator(rehearsal_.tokenizer(), 3);
  for (int i = 0; i < 8; ++i) {
    const Requests& requests = requests_[generator.below(2)];
    ParsedMessage meaning;
    const auto tokens = generator.tokens(generator.turn(requests.thinking, true, meaning));
    for (std::size_t end = 0; end < tokens.size() && !HasFailure(); ++end)
      answer(requests, {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(end)}, end % 5 == 0);
  }
}

}  // namespace
}  // namespace hadal::test
