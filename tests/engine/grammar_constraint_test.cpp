// Answers held to a grammar, by the scheduler over the embedded model: they follow it, and are the same alone
// and in any company, whatever the grammar was used for before.
#include "engine/grammar_constraint.h"

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"
#include "text/chat_dialect.h"
#include "text/grammar_cache.h"
#include "text/json_value.h"

namespace hadal {
namespace {

constexpr std::string_view kSchemas[] = {
    R"({"type": "object", "properties": {"a": {"enum": ["x", "y"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a", "n"]})",
    R"({"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2})",
    R"({"type": "string", "format": "date"})",
};

class GrammarConstraintTest : public testing::Test {
 protected:
  std::shared_ptr<CompiledGrammar> grammar(GrammarCache& cache, std::size_t i) {
    AnswerRules rules;
    rules.body = AnswerRules::Body::json_schema;
    rules.schema = parse_json(kSchemas[i % std::size(kSchemas)]).value();
    rules.strict = true;
    return cache.get(rules).value();
  }

  // Number i: every other one penalises repetition, every third is greedy.
  GenerationRequest request(GrammarCache& cache, std::size_t i) {
    GenerationRequest request = test::request_of(test::random_tokens(118 + i, i), 300, i);
    request.stop_tokens = {end_};
    if (i % 2 == 1) request.rules.frequency_penalty = 0.5;
    if (i % 3 == 2) request.sampling.temperature = 0;
    request.rules.constraint =
        std::make_shared<GrammarConstraint>(grammar(cache, i), engine_.tokenizer(), end_, std::nullopt);
    return request;
  }

  Engine engine_ = test::open_embedded();
  std::unique_ptr<Runner> runner_ = make_model_runner(engine_);
  std::int32_t end_ = engine_.tokenizer().id_of(dialect_v4().eos).value();
  std::int32_t think_end_ = engine_.tokenizer().id_of(dialect_v4().think_end).value();
};

TEST_F(GrammarConstraintTest, AnswersAreTheSameInAnyCompany) {
  constexpr std::size_t kRequests = 9;
  std::vector<std::vector<std::int32_t>> expected;
  std::size_t n_ended = 0;
  for (std::size_t i = 0; i < kRequests; ++i) {
    GrammarCache cache(engine_.tokenizer(), dialect_v4());
    Scheduler scheduler(*runner_, nullptr, {});
    const GenerationEnd& end = test::run(scheduler, request(cache, i));
    expected.push_back(end.tokens);
    const std::string text = engine_.tokenizer().decode(end.tokens).value();
    GrammarMatcher matcher(grammar(cache, i));
    EXPECT_TRUE(matcher.accept_text(text)) << text;
    if (end.finish != FinishReason::stop) continue;
    ++n_ended;
    EXPECT_TRUE(matcher.can_end()) << text;
  }
  EXPECT_GE(n_ended, kRequests / 2);
  // Where memory is short some wait again in the middle.
  const StateLayout& layout = runner_->layout();
  const std::int64_t little_room = 8 * layout.fixed_bytes + 9 * layout.page_bytes;
  GrammarCache cache(engine_.tokenizer(), dialect_v4());
  for (const std::int64_t bytes : {std::int64_t{0}, little_room}) {
    SchedulerOptions options;
    options.max_running = 8;
    options.chunk_tokens = bytes == 0 ? 16 : 2048;
    options.state_bytes = bytes;
    Scheduler scheduler(*runner_, nullptr, options);
    std::vector<test::Submitted> all;
    for (std::size_t i = 0; i < kRequests; ++i) all.push_back(test::submit(scheduler, request(cache, i)));
    for (std::size_t i = 0; i < kRequests; ++i)
      EXPECT_EQ(all[i].listener->wait().tokens, expected[i]) << "request " << i << ", state " << bytes;
    EXPECT_EQ(scheduler.stats().preemptions > 0, bytes > 0);
  }
}

TEST_F(GrammarConstraintTest, ReasoningRunsFreeAndEndsInAnAnswer) {
  GrammarCache cache(engine_.tokenizer(), dialect_v4());
  GrammarConstraint constraint(grammar(cache, 0), engine_.tokenizer(), end_, think_end_);
  const auto vocab = static_cast<std::size_t>(runner_->vocab_size());
  std::vector<float> logits(vocab, 1.0F);
  const auto allowed = [&](std::int32_t token) {
    return logits[static_cast<std::size_t>(token)] > -std::numeric_limits<float>::infinity();
  };
  const Tokenizer& tokenizer = engine_.tokenizer();
  constraint.mask(logits);
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    EXPECT_EQ(allowed(id), !tokenizer.is_added(id) || id == think_end_) << id;
  for (std::size_t id = static_cast<std::size_t>(tokenizer.vocab_size()); id < vocab; ++id)
    EXPECT_FALSE(allowed(static_cast<std::int32_t>(id)));
  constraint.accept(tokenizer.id_of("a").value());
  constraint.accept(think_end_);
  std::fill(logits.begin(), logits.end(), 1.0F);
  constraint.mask(logits);
  EXPECT_TRUE(allowed(tokenizer.id_of("{").value()));
  for (const char* const text : {"a", "}", "\""})
    EXPECT_FALSE(allowed(tokenizer.id_of(text).value())) << text;
  EXPECT_FALSE(allowed(end_));
  EXPECT_FALSE(allowed(think_end_));
}

TEST_F(GrammarConstraintTest, ReasoningMayEndInOrdinaryTokens) {
  GrammarCache cache(engine_.tokenizer(), dialect_v4());
  GrammarConstraint constraint(grammar(cache, 0), engine_.tokenizer(), end_, think_end_);
  for (const char c : std::string_view("so <</think>{"))
    constraint.accept(engine_.tokenizer().id_of(std::string_view(&c, 1)).value());
  std::vector<float> logits(static_cast<std::size_t>(runner_->vocab_size()), 0.0F);
  constraint.mask(logits);
  EXPECT_EQ(logits[static_cast<std::size_t>(engine_.tokenizer().id_of("\"").value())], 0);
  EXPECT_LT(logits[static_cast<std::size_t>(engine_.tokenizer().id_of("{").value())], 0);
}

TEST_F(GrammarConstraintTest, GoesOnFromWhatTheClientBegan) {
  GrammarCache cache(engine_.tokenizer(), dialect_v4());
  GrammarConstraint constraint(grammar(cache, 0), engine_.tokenizer(), end_, std::nullopt);
  EXPECT_FALSE(constraint.begin_with("{\"b"));
  ASSERT_TRUE(constraint.begin_with("{\"a\": \"x\", \"n\": 7"));
  std::vector<float> logits(static_cast<std::size_t>(runner_->vocab_size()), 0.0F);
  constraint.mask(logits);
  EXPECT_EQ(logits[static_cast<std::size_t>(engine_.tokenizer().id_of("}").value())], 0);
  EXPECT_LT(logits[static_cast<std::size_t>(end_)], 0);
  constraint.accept(engine_.tokenizer().id_of("}").value());
  constraint.mask(logits);
  EXPECT_LT(logits[static_cast<std::size_t>(engine_.tokenizer().id_of("}").value())], 0);
  logits[static_cast<std::size_t>(end_)] = 0;
  constraint.mask(logits);
  EXPECT_EQ(logits[static_cast<std::size_t>(end_)], 0);
}

}  // namespace
}  // namespace hadal
