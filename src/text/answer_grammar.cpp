#include "text/answer_grammar.h"

#include <utility>

#include <fmt/format.h>

#include "text/code_points.h"
#include "text/dsml_tag.h"
#include "text/json_grammar.h"
#include "text/json_schema.h"

namespace hadal {
namespace {

// What the parser of the output would take for markup. No text may have it; the special token, which is no
// text, writes it where it belongs.
std::vector<std::string> markup(const ChatDialect& dialect) {
  std::vector<std::string> all = {std::string(dialect.eos), std::string(dialect.think_end)};
  for (const std::string_view marker : dsml_markers()) {
    all.push_back(fmt::format("<{}", marker));
    all.push_back(fmt::format("</{}", marker));
  }
  return all;
}

class AnswerWriter {
 public:
  AnswerWriter(const AnswerRules& rules, const ChatDialect& dialect, std::optional<std::int32_t> dsml,
               const GrammarLimits& limits)
      : rules_(rules),
        builder_(limits),
        json_(builder_, markup(dialect)),
        raw_(builder_, Spelling::raw, markup(dialect)),
        dsml_(dsml ? builder_.token(*dsml) : builder_.literal(dialect.dsml)) {}

  Result<Grammar> write() {
    using Body = AnswerRules::Body;
    ExprId calls = Grammar::kNever;
    if (!rules_.tools.empty()) {
      HADAL_ASSIGN_OR_RETURN(calls, block());
    }
    ExprId answer = calls;
    if (rules_.body == Body::text) {
      answer = builder_.sequence({raw_.free_text(), builder_.optional(calls)});
    } else if (rules_.body != Body::none) {
      HADAL_ASSIGN_OR_RETURN(const ExprId json, document());
      answer = builder_.choice({json, calls});
    }
    return builder_.finish(answer);
  }

 private:
  Result<ExprId> document() {
    if (rules_.body == AnswerRules::Body::json_object) return json_.object();
    JsonSchema schema(rules_.schema, rules_.strict, json_, raw_);
    const ExprId document = schema.value();
    const Status status = schema.finish();
    if (status) return document;
    if (rules_.strict) return tl::unexpected(Error(status.error()).with_context("schema"));
    return json_.value();
  }

  // <｜DSML｜name or </｜DSML｜name
  ExprId tag(std::string_view before, std::string_view name) {
    return builder_.sequence({builder_.literal(before), dsml_, builder_.literal(name)});
  }

  Result<ExprId> block() {
    std::vector<ExprId> calls;
    for (const CallableTool& tool : rules_.tools) {
      HADAL_ASSIGN_OR_RETURN(const ExprId arguments, arguments_of(tool));
      calls.push_back(builder_.sequence({builder_.literal(fmt::format("invoke name=\"{}\">\n", tool.name)),
                                         arguments, tag("\n</", "invoke>")}));
    }
    const ExprId call = builder_.sequence({builder_.literal("<"), dsml_, builder_.choice(calls)});
    const ExprId more = builder_.repeat(builder_.sequence({builder_.literal("\n"), call}), 0,
                                        rules_.many_calls ? Grammar::kUnlimited : 0);
    const ExprId inner = builder_.sequence({call, more, tag("\n</", "tool_calls>")});
    return rules_.begins_in_calls ? inner : builder_.sequence({tag("\n\n<", "tool_calls>\n"), inner});
  }

  // One parameter: a string as it is, anything else as JSON; the attribute says which.
  ExprId parameter(ExprId name, ExprId text, ExprId json) {
    const ExprId as_text = builder_.sequence(
        {builder_.literal("true\">"), builder_.frame(builder_.sequence({text, builder_.literal("</")}))});
    const ExprId as_json = builder_.sequence({builder_.literal("false\">"), json, builder_.literal("</")});
    return builder_.sequence({tag("<", "parameter name=\""), name, builder_.literal("\" string=\""),
                              builder_.choice({as_text, as_json}), dsml_, builder_.literal("parameter>")});
  }

  ExprId any_parameters() {
    CodePoints name('0', '9');
    name.add('A', 'Z');
    name.add('a', 'z');
    name.add('_', '_');
    name.add('-', '-');
    const ExprId any =
        parameter(builder_.repeat(raw_.character(name), 1, 64), raw_.free_text(), json_.value());
    return builder_.optional(
        builder_.sequence({any, builder_.repeat(builder_.sequence({builder_.literal("\n"), any}), 0)}));
  }

  // In the order of the schema, as the members of a JSON object.
  Result<ExprId> arguments_of(const CallableTool& tool) {
    JsonSchema schema(tool.parameters, tool.strict, json_, raw_);
    const auto failed = [&](const Error& error) -> Result<ExprId> {
      if (!tool.strict) return any_parameters();
      return tl::unexpected(Error(error).with_context(fmt::format("parameters of {}", quoted(tool.name))));
    };
    const auto members = schema.members();
    if (!members) return failed(members.error());
    const JsonValue* additional = tool.parameters.find("additionalProperties");
    const bool closed = tool.strict || (additional != nullptr && !additional->truthy());
    ExprId first = members->empty() && !closed ? any_parameters() : Grammar::kEmpty, later = Grammar::kEmpty;
    for (std::size_t i = members->size(); i-- > 0;) {
      const JsonSchema::Member& member = (*members)[i];
      const ExprId text = schema.member_value(member, kStringType, Spelling::raw);
      const ExprId json = schema.member_value(member, kAllTypes & ~kStringType, Spelling::json);
      const ExprId at_first =
          builder_.sequence({parameter(builder_.literal(member.name), text, json), later});
      const ExprId after_others = builder_.sequence({builder_.literal("\n"), at_first});
      first = member.required ? at_first : builder_.choice({at_first, first});
      later = member.required ? after_others : builder_.choice({after_others, later});
    }
    const Status status = schema.finish();
    return status ? Result<ExprId>(first) : failed(status.error());
  }

  const AnswerRules& rules_;
  GrammarBuilder builder_;
  JsonGrammar json_;
  TextExprs raw_;
  ExprId dsml_;
};

}  // namespace

std::string AnswerRules::key() const {
  std::string key = fmt::format("{} {} {} {} {}", static_cast<int>(body), strict, many_calls, begins_in_calls,
                                to_python_json(schema));
  for (const CallableTool& tool : tools)
    key += fmt::format("\n{} {} {} {}", tool.name.size(), tool.name, tool.strict,
                       to_python_json(tool.parameters));
  return key;
}

Result<Grammar> answer_grammar(const AnswerRules& rules, const ChatDialect& dialect,
                               std::optional<std::int32_t> dsml, const GrammarLimits& limits) {
  return AnswerWriter(rules, dialect, dsml, limits).write();
}

}  // namespace hadal
