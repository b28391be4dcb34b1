// What the model writes, taken apart while it comes in: reasoning, answer and tool calls (DSML).
//
// OutputParser is lenient: it makes the best of whatever comes, and never fails. What it does with each kind
// of malformed output is in docs/chat.md. Output that the official parser accepts gives what that parser
// gives, with the exceptions listed there. parse_output_strict is the official parser, errors and all.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/error.h>

#include "text/dsml_arguments.h"
#include "text/dsml_tag.h"

namespace hadal {

struct OutputParserOptions {
  bool thinking = true;    // the prompt ended with <think>: the output begins with reasoning
  bool tool_calls = true;  // false when no tools were declared: markup of calls is ordinary text
  bool plain_xml = false;  // take <tool_calls><invoke name="..."> without the DSML marker for calls too
  // What is meant as a tag and spelt like none: within a block a tag counts whatever its marker looks like,
  // and a tag alone in the text is left out. The official parser would take either for text.
  bool mends_tags = false;
  bool starts_in_tool_calls = false;  // the prompt ended inside a block of calls (a call was asked for)
  std::shared_ptr<const ToolSchemas> schemas = nullptr;  // types of the arguments, where known
};

// How the output ended.
enum class OutputEnd : std::uint8_t {
  text,            // no complete call, none cut off
  tool_calls,      // with at least one complete call
  truncated_call,  // within the markup of a call, which is dropped (calls before it are complete)
};

struct OutputEvent {
  enum class Kind : std::uint8_t {
    reasoning,            // text: more of the reasoning
    content,              // text: more of the answer
    tool_call_start,      // text: the name of call `index`
    tool_call_arguments,  // text: more of the JSON of the arguments of call `index`
    tool_call_end,        // call `index` is complete: only now may it be executed
    finish,               // the last event; `end` says how
  };

  Kind kind;
  int index = 0;  // of the call, counted from 0
  std::string text{};
  OutputEnd end = OutputEnd::text;
};

// Bytes in, in pieces of any size; events out. All text in events is valid UTF-8, no character is divided
// between two events, and no part of a tag is given out as text while it may still become one. Put together,
// the events do not depend on how the output was cut into pieces.
class OutputParser {
 public:
  explicit OutputParser(OutputParserOptions options = {});

  // Appends the events that `bytes` complete.
  void feed(std::string_view bytes, std::vector<OutputEvent>& events);

  // The output has ended: appends what was held back, and the finish event. Call once, last.
  void finish(std::vector<OutputEvent>& events);

  // Nothing that may follow can change the message (EOS was read, or the block of calls is closed).
  bool done() const { return state_ == State::done; }

 private:
  enum class State : std::uint8_t {
    reasoning,
    content,
    block,
    invoke_header,
    invoke,
    parameter_header,
    value,
    done
  };

  std::string_view rest() const { return std::string_view(text_).substr(begin_); }
  void consume(std::size_t n);
  void run(std::vector<OutputEvent>& events);
  bool step();  // one construct; false when more text is needed

  bool step_text();
  bool step_block();
  bool step_invoke_header();
  bool step_invoke();
  bool step_parameter_header();
  bool step_value();

  bool wait(
      std::size_t scanned);  // more text is needed; the first `scanned` bytes of rest() are of no interest
  Match match_block_opening(std::string_view text, Tag& tag) const;
  Match match_value_end(std::string_view text, Tag& tag) const;
  Match match_inner_tag(std::string_view text, Tag& tag) const;
  bool is_severed_markup(std::string_view text) const;
  void enter_value(std::string_view name, ValueForm form, std::string_view marker);

  void emit(OutputEvent::Kind kind, std::string_view text);
  void emit_text(std::string_view text);  // reasoning or content
  void emit_text_before_block(
      std::size_t n);  // the first n bytes of rest(), less the newlines before the block
  void emit_arguments();
  void start_call(std::string_view header);
  void end_call();
  void stop_inside_call();

  OutputParserOptions options_;
  State state_;
  std::string pending_bytes_;  // the beginning of a character
  std::string text_;           // not yet consumed, from begin_ on
  std::size_t begin_ = 0;
  std::size_t scan_ = 0;  // how far into rest() the current state has looked
  bool final_ = false;    // nothing follows text_
  std::vector<OutputEvent>* events_ = nullptr;
  std::size_t first_event_ = 0;  // of this piece of output

  bool plain_block_ = false;       // the block was opened without a DSML marker
  std::string_view value_marker_;  // the marker of the parameter whose value is being read
  bool call_has_name_ = false;     // a call without a name is read but not reported
  bool severed_ = false;           // the output ended within markup
  int n_calls_ = 0;                // complete
  ArgumentWriter arguments_;
  std::string arguments_text_;
};

struct ParsedToolCall {
  std::string name;
  std::string arguments;  // the text of a JSON object

  friend bool operator==(const ParsedToolCall&, const ParsedToolCall&) = default;
};

struct ParsedMessage {
  std::string content;
  std::string reasoning_content;
  std::vector<ParsedToolCall> tool_calls;  // complete ones
  OutputEnd end = OutputEnd::text;

  friend bool operator==(const ParsedMessage&, const ParsedMessage&) = default;
};

// The message that the events tell of. A call without its tool_call_end is left out.
ParsedMessage fold_events(const std::vector<OutputEvent>& events);

// All of the output at once.
ParsedMessage parse_output(std::string_view output, OutputParserOptions options = {});

// As DeepSeek's official parser: accepts only well-formed output (with its EOS), and pastes the values of
// string="false" unchecked, so that arguments need not be valid JSON. Error: corrupt, where that one raises.
Result<ParsedMessage> parse_output_strict(std::string_view output, bool thinking);

}  // namespace hadal
