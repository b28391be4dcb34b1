#include "text/output_parser.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "text/utf8.h"

namespace hadal {
namespace {

constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::size_t kMaxSpace =
    256;  // white space between two tags beyond which they do not belong together
constexpr std::size_t kMaxTagName = 32;
constexpr std::string_view kSpace = " \t\r\n";

bool is_blank(std::string_view text) {
  return text.find_first_not_of(kSpace) == std::string_view::npos;
}

// The line breaks at the end of `text` that may belong to a block of calls that follows, at most two CRLF.
std::size_t trailing_newlines(std::string_view text) {
  std::size_t n = 0;
  while (n < 4 && n < text.size() && (text[text.size() - 1 - n] == '\n' || text[text.size() - 1 - n] == '\r'))
    ++n;
  return n;
}

// Where `text` goes on after a tag of which `at` bytes were read: past spaces, `>` and white space.
std::size_t skip_to_next_tag(std::string_view text, std::size_t at) {
  while (at < text.size() && (text[at] == ' ' || text[at] == '\t')) ++at;
  if (at < text.size() && text[at] == '>') ++at;
  const std::size_t limit = std::min(text.size(), at + kMaxSpace);
  while (at < limit && kSpace.find(text[at]) != std::string_view::npos) ++at;
  return at;
}

// The tool's name in ` name="f">\n`, what follows `<｜DSML｜invoke`. In the well-formed case a quote belongs
// to the name unless `>` and nothing else follows it.
std::optional<std::string> invoke_name(std::string_view header) {
  constexpr std::string_view kName = "name=\"";
  const std::size_t begin = header.find_first_not_of(kSpace);
  const std::size_t end = header.rfind("\">");
  if (begin != std::string_view::npos && header.substr(begin).starts_with(kName) &&
      end != std::string_view::npos && end >= begin + kName.size() && is_blank(header.substr(end + 2))) {
    return std::string(header.substr(begin + kName.size(), end - begin - kName.size()));
  }
  auto attributes = parse_attributes(header);
  if (!attributes) attributes = parse_attributes(std::string(header) + ">");
  return attributes ? attributes->name : std::nullopt;
}

ValueForm form_of(const std::optional<std::string>& attribute) {
  if (attribute == "true" || attribute == "True" || attribute == "TRUE") return ValueForm::string;
  if (attribute == "false" || attribute == "False" || attribute == "FALSE") return ValueForm::json;
  return ValueForm::unspecified;
}

}  // namespace

OutputParser::OutputParser(OutputParserOptions options)
    : options_(std::move(options)),
      state_(options_.starts_in_tool_calls ? State::block
             : options_.thinking           ? State::reasoning
                                           : State::content) {}

void OutputParser::feed(std::string_view bytes, std::vector<OutputEvent>& events) {
  if (done()) return;
  pending_bytes_ += bytes;
  take_utf8(pending_bytes_, /*at_end=*/false, text_);
  run(events);
}

void OutputParser::finish(std::vector<OutputEvent>& events) {
  final_ = true;
  run(events);
  take_utf8(pending_bytes_, /*at_end=*/true, text_);  // half a character cannot have completed a tag
  run(events);
  OutputEvent finish{.kind = OutputEvent::Kind::finish};
  finish.end = severed_ ? OutputEnd::truncated_call : n_calls_ > 0 ? OutputEnd::tool_calls : OutputEnd::text;
  events.push_back(std::move(finish));
}

void OutputParser::run(std::vector<OutputEvent>& events) {
  events_ = &events;
  first_event_ = events.size();
  while (!done() && step()) {
  }
  if (done()) consume(rest().size());
  text_.erase(0, begin_);
  begin_ = 0;
  events_ = nullptr;
}

bool OutputParser::step() {
  switch (state_) {
    case State::reasoning:
    case State::content:
      return step_text();
    case State::block:
      return step_block();
    case State::invoke_header:
      return step_invoke_header();
    case State::invoke:
      return step_invoke();
    case State::parameter_header:
      return step_parameter_header();
    case State::value:
      return step_value();
    case State::done:
      return false;
  }
  return false;
}

void OutputParser::consume(std::size_t n) {
  begin_ += n;
  scan_ = 0;
}

// Reasoning or answer, up to whatever ends it.
bool OutputParser::step_text() {
  const std::string_view text = rest();
  const bool mends = options_.mends_tags && options_.tool_calls;
  const std::string_view first = mends ? "<\xEF" : "<";  // of a tag, or of a marker
  for (std::size_t at = text.find_first_of(first, scan_); at != std::string_view::npos;
       at = text.find_first_of(first, at + 1)) {
    const std::string_view candidate = text.substr(at);
    Tag tag;
    std::size_t stray_length = 0;
    const Match stray = mends ? match_stray_tag(candidate, stray_length) : Match::no;
    const Match eos = match_literal(candidate, kEos);
    const Match think_end = match_literal(candidate, kThinkEnd);
    const bool may_open = options_.tool_calls && candidate.front() == '<';
    const Match opening = may_open ? match_block_opening(candidate, tag) : Match::no;
    if (eos == Match::yes) {
      emit_text(text.substr(0, at));
      state_ = State::done;
      return true;
    }
    if (think_end == Match::yes) {  // in the answer it is out of place and left out
      emit_text(text.substr(0, at));
      consume(at + kThinkEnd.size());
      state_ = State::content;
      return true;
    }
    if (opening == Match::yes) {
      emit_text_before_block(at);
      consume(tag.name == TagName::block ? at + tag.length : at);
      plain_block_ = tag.marker.empty();
      state_ = State::block;
      return true;
    }
    if (eos == Match::no && think_end == Match::no && opening == Match::no && stray == Match::no) continue;
    if (opening == Match::no && stray_length > 0 && (stray == Match::yes || final_)) {
      emit_text(text.substr(0, at));
      consume(at + stray_length);
      return true;
    }
    if (!final_) {
      const std::size_t ready = at - trailing_newlines(text.substr(0, at));
      emit_text(text.substr(0, ready));
      consume(ready);
      scan_ = at - ready;
      return false;
    }
    if (is_severed_markup(candidate)) {
      severed_ = eos == Match::no;
      if (opening == Match::no) {
        emit_text(text.substr(0, at));
      } else {
        emit_text_before_block(at);
      }
      state_ = State::done;
      return true;
    }
  }
  const bool hold_newlines = options_.tool_calls && !final_;
  const std::size_t ready = text.size() - (hold_newlines ? trailing_newlines(text) : 0);
  emit_text(text.substr(0, ready));
  consume(ready);
  scan_ = text.size() - ready;
  return false;
}

// Whether a block of calls begins here: `<｜DSML｜tool_calls>` with a call or its own end after it, or a call
// without the block around it. A tag that is only mentioned has neither.
Match OutputParser::match_block_opening(std::string_view text, Tag& tag) const {
  const Match match = match_tag(text, options_.plain_xml, tag);
  if (match != Match::yes) return match;
  if (tag.closing || tag.name == TagName::parameter) return Match::no;
  if (tag.name == TagName::invoke) {
    if (tag.marker.empty()) return Match::no;
    const std::size_t at = text.find_first_not_of(kSpace, tag.length);
    if (at == std::string_view::npos)
      return text.size() - tag.length > kMaxSpace ? Match::no : Match::partial;
    return at - tag.length > kMaxSpace ? Match::no : match_literal(text.substr(at), "name");
  }
  const std::size_t at = skip_to_next_tag(text, tag.length);
  if (at == text.size()) return Match::partial;
  if (text[at] != '<') return Match::no;
  const Match eos = match_literal(text.substr(at), kEos);
  if (eos == Match::yes) return Match::yes;
  Tag next;
  const Match inner = match_tag(text.substr(at), tag.marker.empty(), next);
  if (inner == Match::yes)
    return next.name == (next.closing ? TagName::block : TagName::invoke) ? Match::yes : Match::no;
  return inner == Match::partial || eos == Match::partial ? Match::partial : Match::no;
}

// Whether a tag that the end of the output cut off is certain enough to be left out: it has the full-width
// bar or the marker, or is the whole opening of a plain block. A `<` alone may be text.
bool OutputParser::is_severed_markup(std::string_view text) const {
  if (text.starts_with("<｜") || text.starts_with("</｜") || text.find("DSML") != std::string_view::npos)
    return true;
  Tag tag;
  return options_.plain_xml && match_tag(text, true, tag) == Match::yes;
}

// Between calls. What is not a tag is dropped.
bool OutputParser::step_block() {
  const std::string_view text = rest();
  for (std::size_t at = text.find('<', scan_); at != std::string_view::npos; at = text.find('<', at + 1)) {
    const std::string_view candidate = text.substr(at);
    Tag tag;
    const Match eos = match_literal(candidate, kEos);
    const Match match = match_inner_tag(candidate, tag);
    if (eos == Match::yes || (match == Match::yes && tag.closing && tag.name == TagName::block)) {
      state_ = State::done;
      return true;
    }
    if (match == Match::yes && !tag.closing && tag.name == TagName::invoke) {
      consume(at + tag.length);
      state_ = State::invoke_header;
      return true;
    }
    if ((match == Match::partial || eos == Match::partial) && !final_) {
      consume(at);
      return false;
    }
  }
  consume(text.size());
  return false;
}

// A tag where tags are expected.
Match OutputParser::match_inner_tag(std::string_view text, Tag& tag) const {
  const Match match = match_tag(text, plain_block_, tag);
  if (match != Match::no || !options_.mends_tags || plain_block_) return match;
  return match_misspelt_tag(text, tag);
}

// From `<｜DSML｜invoke` to the next tag: the name of the tool.
bool OutputParser::step_invoke_header() {
  const std::string_view text = rest();
  for (std::size_t at = text.find('<', scan_); at != std::string_view::npos; at = text.find('<', at + 1)) {
    Tag tag;
    const Match match = match_inner_tag(text.substr(at), tag);
    if (match == Match::partial && !final_) {
      scan_ = at;
      return false;
    }
    const bool ends_header = match == Match::yes &&
                             (tag.name == TagName::invoke || (tag.name == TagName::parameter) != tag.closing);
    if (!ends_header) continue;
    start_call(text.substr(0, at));
    consume(at);
    state_ = State::invoke;
    return true;
  }
  scan_ = text.size();
  if (final_) stop_inside_call();
  return false;
}

// Within a call, between parameters. What is not a tag is dropped.
bool OutputParser::step_invoke() {
  const std::string_view text = rest();
  for (std::size_t at = text.find('<', scan_); at != std::string_view::npos; at = text.find('<', at + 1)) {
    const std::string_view candidate = text.substr(at);
    Tag tag;
    const Match eos = match_literal(candidate, kEos);
    if (eos == Match::yes) {
      stop_inside_call();
      return false;
    }
    const Match match = match_inner_tag(candidate, tag);
    if ((match == Match::partial || eos == Match::partial) && !final_) {
      consume(at);
      return false;
    }
    if (match != Match::yes) continue;
    if (tag.name == TagName::parameter) {
      consume(at + tag.length);
      if (!tag.closing) {
        value_marker_ = tag.marker;
        state_ = State::parameter_header;
      } else if (arguments_.depth() > 0) {
        arguments_.end_object(arguments_text_);
        emit_arguments();
      }
      return true;
    }
    if (tag.name == TagName::block && !tag.closing) continue;
    // The call ends here, or ended unsaid before the next call or before the end of the block.
    const bool is_own_end = tag.name == TagName::invoke && tag.closing;
    end_call();
    consume(is_own_end ? at + tag.length : at);
    state_ = State::block;
    return true;
  }
  consume(text.size());
  if (final_) stop_inside_call();
  return false;
}

// From `<｜DSML｜parameter` to where the value begins.
bool OutputParser::step_parameter_header() {
  constexpr std::string_view kIsString = "\" string=\"true\">";
  constexpr std::string_view kIsJson = "\" string=\"false\">";
  const std::string_view text = rest();
  for (std::size_t at = text.find_first_of("\"<", scan_); at != std::string_view::npos;
       at = text.find_first_of("\"<", at + 1)) {
    const std::string_view candidate = text.substr(at);
    if (candidate.front() == '"') {
      const Match is_string = match_literal(candidate, kIsString);
      const Match is_json = match_literal(candidate, kIsJson);
      if (is_string == Match::yes || is_json == Match::yes) {  // well formed; the name may hold quotes
        const std::size_t length = is_string == Match::yes ? kIsString.size() : kIsJson.size();
        constexpr std::string_view kName = "name=\"";
        const std::size_t begin = text.find_first_not_of(kSpace);
        std::string name;
        if (begin + kName.size() <= at && text.substr(begin).starts_with(kName)) {
          name = text.substr(begin + kName.size(), at - begin - kName.size());
        } else if (const auto attributes = parse_attributes(text.substr(0, at + length))) {
          name = attributes->name.value_or("");
        }
        consume(at + length);
        arguments_.begin_value(name, is_string == Match::yes ? ValueForm::string : ValueForm::json,
                               arguments_text_);
        emit_arguments();
        state_ = State::value;
        return true;
      }
      if ((is_string == Match::partial || is_json == Match::partial) && !final_) {
        scan_ = at;
        return false;
      }
      continue;
    }
    Tag tag;
    const Match match = match_inner_tag(candidate, tag);
    if (match == Match::partial && !final_) {
      scan_ = at;
      return false;
    }
    if (match != Match::yes || (tag.name == TagName::block && !tag.closing)) continue;
    // A tag before the header was complete in the usual form: take it as it is.
    const auto attributes = parse_attributes(text.substr(0, at));
    if (!attributes) {  // not even a `>`
      consume(at);
      state_ = State::invoke;
      return true;
    }
    const std::string name = attributes->name.value_or("");
    const ValueForm form = form_of(attributes->string);
    const bool has_children = tag.name == TagName::parameter && !tag.closing && form != ValueForm::string &&
                              is_blank(text.substr(attributes->length, at - attributes->length));
    if (has_children && arguments_.depth() < ArgumentWriter::kMaxDepth) {
      arguments_.begin_object(name, arguments_text_);
      consume(at);
      state_ = State::invoke;
    } else {
      arguments_.begin_value(name, form, arguments_text_);
      consume(attributes->length);
      state_ = State::value;
    }
    emit_arguments();
    return true;
  }
  scan_ = text.size();
  if (final_) stop_inside_call();
  return false;
}

// The value of a parameter, up to its closing tag.
bool OutputParser::step_value() {
  const std::string_view text = rest();
  for (std::size_t at = text.find('<', scan_); at != std::string_view::npos; at = text.find('<', at + 1)) {
    Tag tag;
    const Match match = match_value_end(text.substr(at), tag);
    const bool is_child = match == Match::no && tag.length > 0 && !tag.closing &&
                          tag.name == TagName::parameter && tag.marker == value_marker_ &&
                          is_blank(text.substr(0, at)) && arguments_.value_to_object(arguments_text_);
    if (is_child) {
      consume(at);
      state_ = State::invoke;
      emit_arguments();
      return true;
    }
    if (match == Match::no) continue;
    arguments_.value_text(text.substr(0, at), arguments_text_);
    if (match == Match::yes) {
      arguments_.end_value(arguments_text_);
      consume(tag.name == TagName::parameter ? at + tag.length : at);
      state_ = State::invoke;
    } else {
      consume(at);
    }
    emit_arguments();
    if (match == Match::partial && final_) stop_inside_call();
    return match == Match::yes;
  }
  arguments_.value_text(text, arguments_text_);
  consume(text.size());
  emit_arguments();
  if (final_) stop_inside_call();
  return false;
}

// Whether the value ends here: at the closing tag of the parameter, spelt as the opening one was. Any other
// closing tag ends it only if another tag follows, but not the one that closes the parameter: then the
// value's own end was forgotten or misspelt. Otherwise it is part of the value, as for the official parser.
Match OutputParser::match_value_end(std::string_view text, Tag& tag) const {
  const bool plain = value_marker_.empty();
  const Match match = match_tag(text, plain, tag);
  if (match == Match::partial) return Match::partial;
  if (match == Match::yes) {
    if (!tag.closing || tag.marker != value_marker_) return Match::no;
    if (tag.name == TagName::parameter) return Match::yes;
  } else if (plain || !text.starts_with("</") || !text.substr(2).starts_with(value_marker_)) {
    return Match::no;
  } else {  // a closing tag of no known name
    tag.name = TagName::block;
    tag.length = 2 + value_marker_.size();
    const std::size_t limit = std::min(text.size(), tag.length + kMaxTagName);
    while (tag.length < limit && is_tag_name_character(text[tag.length])) ++tag.length;
  }
  const Match at_cut = final_ ? Match::yes : Match::partial;
  const std::size_t at = skip_to_next_tag(text, tag.length);
  if (at == text.size()) return at_cut;
  if (text[at] != '<') return Match::no;
  const Match eos = match_literal(text.substr(at), kEos);
  Tag next;
  const Match following = match_tag(text.substr(at), plain, next);
  if (eos == Match::yes) return Match::yes;
  if (following == Match::yes) {
    const bool closes_parameter = next.closing && next.name == TagName::parameter;
    return next.marker == value_marker_ && !closes_parameter ? Match::yes : Match::no;
  }
  return following == Match::partial || eos == Match::partial ? at_cut : Match::no;
}

void OutputParser::emit(OutputEvent::Kind kind, std::string_view text) {
  if (events_->size() > first_event_ && events_->back().kind == kind) {
    events_->back().text += text;  // what comes in one piece goes out in one
    return;
  }
  OutputEvent event{.kind = kind};
  event.index = n_calls_;
  event.text = text;
  events_->push_back(std::move(event));
}

void OutputParser::emit_text(std::string_view text) {
  if (text.empty()) return;
  emit(state_ == State::reasoning ? OutputEvent::Kind::reasoning : OutputEvent::Kind::content, text);
}

void OutputParser::emit_text_before_block(std::size_t n) {
  std::string_view text = rest().substr(0, n);
  for (const std::string_view newlines : {"\n\n", "\r\n\r\n", "\r\n", "\n"}) {
    if (!text.ends_with(newlines)) continue;
    text.remove_suffix(newlines.size());
    break;
  }
  emit_text(text);
}

void OutputParser::emit_arguments() {
  if (call_has_name_ && !arguments_text_.empty())
    emit(OutputEvent::Kind::tool_call_arguments, arguments_text_);
  arguments_text_.clear();
}

void OutputParser::start_call(std::string_view header) {
  std::optional<std::string> name = invoke_name(header);
  const bool is_known = name && options_.schemas && options_.schemas->contains(*name);
  if (name && !is_known && options_.mends_tags && name->find("DSML") != std::string::npos) {
    name->resize(std::min(name->find("DSML"), name->find_first_of("<|\xEF")));  // markup is no name
    if (name->empty()) name.reset();
  }
  call_has_name_ = name.has_value();
  const JsonValue* schema = nullptr;
  if (name && options_.schemas) {
    if (const auto found = options_.schemas->find(*name); found != options_.schemas->end())
      schema = &found->second;
  }
  arguments_.begin(schema);
  if (name) emit(OutputEvent::Kind::tool_call_start, *name);
}

void OutputParser::end_call() {
  arguments_.end(arguments_text_);
  emit_arguments();
  if (!call_has_name_) return;
  emit(OutputEvent::Kind::tool_call_end, "");
  ++n_calls_;
}

void OutputParser::stop_inside_call() {
  severed_ = true;
  state_ = State::done;
}

ParsedMessage fold_events(const std::vector<OutputEvent>& events) {
  ParsedMessage message;
  ParsedToolCall call;
  for (const OutputEvent& event : events) {
    switch (event.kind) {
      case OutputEvent::Kind::reasoning:
        message.reasoning_content += event.text;
        break;
      case OutputEvent::Kind::content:
        message.content += event.text;
        break;
      case OutputEvent::Kind::tool_call_start:
        call = {event.text, ""};
        break;
      case OutputEvent::Kind::tool_call_arguments:
        call.arguments += event.text;
        break;
      case OutputEvent::Kind::tool_call_end:
        message.tool_calls.push_back(std::exchange(call, {}));
        break;
      case OutputEvent::Kind::finish:
        message.end = event.end;
        break;
    }
  }
  return message;
}

ParsedMessage parse_output(std::string_view output, OutputParserOptions options) {
  OutputParser parser(std::move(options));
  std::vector<OutputEvent> events;
  parser.feed(output, events);
  parser.finish(events);
  return fold_events(events);
}

}  // namespace hadal
