// The public library on the embedded model and on a recorded one.
#include <algorithm>
#include <filesystem>

#include <gtest/gtest.h>

#include <hadal/engine.h>

#include "formats/safetensors_image.h"
#include "golden_data.h"

namespace hadal {
namespace {

Engine open(EngineOptions options = {}) {
  options.threads = 2;
  auto engine = Engine::open(options);
  EXPECT_TRUE(engine.has_value()) << engine.error().message();
  return std::move(*engine);
}

GenerationOptions greedy(std::int64_t tokens) {
  GenerationOptions options;
  options.max_tokens = tokens;
  options.sampling.temperature = 0;
  return options;
}

TEST(Engine, EmbeddedModelContinuesText) {
  const Engine engine = open();
  EXPECT_EQ(engine.info().model, "embedded");
  EXPECT_EQ(engine.info().numerics, "exact");
  const auto prompt = engine.tokenizer().encode("The sea is");
  ASSERT_TRUE(prompt.has_value());
  Sequence sequence = engine.start();
  std::string streamed;
  const auto generation =
      engine.generate(sequence, *prompt, greedy(20), [&](const GeneratedToken& t) { streamed += t.text; });
  ASSERT_TRUE(generation.has_value());
  EXPECT_EQ(generation->tokens.size(), 20U);
  EXPECT_EQ(generation->finish, FinishReason::length);
  EXPECT_EQ(generation->text, streamed);
  EXPECT_EQ(sequence.length(), static_cast<std::int64_t>(prompt->size()) + 19)
      << "the last token is left to the next turn";
  // Greedy is the argmax of the raw logits.
  Sequence again = engine.start();
  ASSERT_TRUE(again.append(*prompt).has_value());
  const auto logits = again.logits();
  EXPECT_EQ(generation->tokens[0], std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST(Engine, SampledTextDependsOnTheSeedAlone) {
  const auto run = [](std::int64_t chunk, int threads, std::uint64_t seed) {
    EngineOptions options;
    options.chunk_tokens = chunk;
    options.threads = threads;
    auto engine = Engine::open(options);
    const auto prompt = engine->tokenizer().encode("In the beginning there was a rather long prompt.");
    Sequence sequence = engine->start();
    GenerationOptions generation;
    generation.max_tokens = 30;
    generation.sampling.seed = seed;
    return engine->generate(sequence, *prompt, generation)->tokens;
  };
  const auto tokens = run(512, 2, 1);
  EXPECT_EQ(run(1, 1, 1), tokens);
  EXPECT_EQ(run(7, 3, 1), tokens);
  EXPECT_NE(run(512, 2, 2), tokens);
}

// Chunks of a prompt are read one by one; what makes a later one impossible must be seen before the first.
TEST(Engine, ARefusedPromptLeavesTheSequenceAsItWas) {
  EngineOptions options;
  options.chunk_tokens = 4;
  const Engine engine = open(options);
  Sequence sequence = engine.start();
  ASSERT_TRUE(sequence.append({{1, 2, 3}}).has_value());
  std::vector<std::int32_t> prompt(20, 5);
  prompt.back() = static_cast<std::int32_t>(engine.info().vocab_size);
  const auto refused = engine.generate(sequence, prompt, greedy(1));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::invalid_argument);
  EXPECT_EQ(sequence.length(), 3);
  prompt.assign(static_cast<std::size_t>(engine.info().context) - 2, 5);
  EXPECT_EQ(engine.generate(sequence, prompt, greedy(1)).error().code(), ErrorCode::resource_exhausted);
  EXPECT_EQ(sequence.length(), 3);
  EXPECT_EQ(sequence.tokens(), (std::vector<std::int32_t>{1, 2, 3}));
}

TEST(Engine, StopsAtTokensAndStringsAndWhenCancelled) {
  const Engine engine = open();
  const auto prompt = *engine.tokenizer().encode("abc");
  Sequence first = engine.start();
  const auto free = engine.generate(first, prompt, greedy(12));
  ASSERT_TRUE(free.has_value());

  GenerationOptions by_token = greedy(12);
  by_token.stop_tokens = {free->tokens[5]};
  const auto place =
      std::find(free->tokens.begin(), free->tokens.end(), free->tokens[5]) - free->tokens.begin();
  Sequence second = engine.start();
  const auto stopped = engine.generate(second, prompt, by_token);
  EXPECT_EQ(stopped->finish, FinishReason::stop);
  EXPECT_EQ(static_cast<std::ptrdiff_t>(stopped->tokens.size()), place);

  if (free->text.size() > 4) {
    GenerationOptions by_text = greedy(12);
    by_text.stop = {free->text.substr(2, 2)};
    Sequence third = engine.start();
    const auto cut = engine.generate(third, prompt, by_text);
    EXPECT_EQ(cut->finish, FinishReason::stop);
    EXPECT_EQ(cut->text, free->text.substr(0, free->text.find(by_text.stop[0])));
  }

  GenerationOptions cancelled = greedy(12);
  int asked = 0;
  cancelled.cancelled = [&] { return ++asked > 3; };
  Sequence fourth = engine.start();
  const auto ended = engine.generate(fourth, prompt, cancelled);
  EXPECT_EQ(ended->finish, FinishReason::cancelled);
  EXPECT_EQ(ended->tokens.size(), 3U);
}

TEST(Engine, SequencesForkTruncateSaveAndLoad) {
  EngineOptions options;
  options.checkpoint_tokens = 128;
  options.chunk_tokens = 50;
  const Engine engine = open(options);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < 300; ++i) tokens.push_back(i * 37 % 256 + 40);
  Sequence whole = engine.start();
  ASSERT_TRUE(whole.append(tokens).has_value());
  const std::vector<float> expected(whole.logits().begin(), whole.logits().end());
  const auto rest_from = [&](Sequence& sequence) {
    const auto at = static_cast<std::size_t>(sequence.length());
    EXPECT_TRUE(sequence.append(std::span(tokens).subspan(at)).has_value());
    return std::vector<float>(sequence.logits().begin(), sequence.logits().end());
  };

  Sequence fork = whole.fork();
  ASSERT_TRUE(fork.truncate(256).has_value());
  EXPECT_EQ(fork.tokens().size(), 256U);
  EXPECT_TRUE(fork.logits().empty());
  EXPECT_EQ(rest_from(fork), expected);
  ASSERT_TRUE(fork.truncate(128).has_value());
  EXPECT_EQ(rest_from(fork), expected);
  EXPECT_FALSE(fork.truncate(200).has_value());

  const test::TemporaryDirectory directory;
  const auto path = directory / "sequence";
  Sequence part = engine.start();
  ASSERT_TRUE(part.append(std::span(tokens).first(77)).has_value());
  ASSERT_TRUE(part.save(path).has_value());
  auto loaded = engine.load_sequence(path);
  ASSERT_TRUE(loaded.has_value()) << loaded.error().message();
  EXPECT_EQ(loaded->tokens(), part.tokens());
  EXPECT_EQ(rest_from(*loaded), expected);
  EXPECT_FALSE(engine.load_sequence("/nowhere/at/all").has_value());
}

TEST(Engine, RefusesBadInputAndChangesNothing) {
  const Engine engine = open();
  Sequence sequence = engine.start();
  EXPECT_FALSE(engine.generate(sequence, {}, greedy(1)).has_value()) << "nothing to continue";
  const std::vector<std::int32_t> bad = {5, 6, 9999};
  const Status refused = sequence.append(bad);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message().find("9999"), std::string::npos);
  EXPECT_EQ(sequence.length(), 0);
  GenerationOptions options = greedy(1);
  options.sampling.top_p = 2;
  EXPECT_FALSE(engine.generate(sequence, std::vector<std::int32_t>{5}, options).has_value());

  EngineOptions wrong;
  wrong.isa = "riscv";
  EXPECT_EQ(Engine::open(wrong).error().code(), ErrorCode::unsupported);
  wrong = {};
  wrong.checkpoint_tokens = 100;
  EXPECT_FALSE(Engine::open(wrong).has_value());
  wrong = {};
  wrong.model = "/no/such/model";
  EXPECT_EQ(Engine::open(wrong).error().code(), ErrorCode::not_found);
  wrong.model = test::reference_directory() / "models" / "t2-m2";  // has no tokenizer.json
  const auto without = Engine::open(wrong);
  ASSERT_FALSE(without.has_value());
  EXPECT_NE(without.error().message().find("tokenizer.json"), std::string::npos);
  wrong.tokenizer = false;
  EXPECT_TRUE(Engine::open(wrong).has_value());
}

TEST(Engine, PromptLongerThanTheContextIsRefusedWhole) {
  EngineOptions options;
  options.model = test::reference_directory() / "models" / "t2-m2";
  options.tokenizer = false;
  const Engine engine = open(options);
  Sequence sequence = engine.start();
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(engine.info().context) + 1, 7);
  const Status refused = sequence.append(tokens);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::resource_exhausted);
  EXPECT_NE(refused.error().message().find("context of 1024"), std::string::npos);
  EXPECT_EQ(sequence.length(), 0);
}

}  // namespace
}  // namespace hadal
