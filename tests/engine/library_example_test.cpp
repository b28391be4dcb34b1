// The example of docs/library.md, which must stay the same text.
#include <gtest/gtest.h>

#include <hadal/engine.h>

hadal::Result<std::string> answer(const std::string& question) {
  hadal::EngineOptions options;  // options.model = "DeepSeek-V4-Flash"; without it the embedded model
  HADAL_ASSIGN_OR_RETURN(const hadal::Engine engine, hadal::Engine::open(options));
  HADAL_ASSIGN_OR_RETURN(const auto prompt, engine.tokenizer().encode(question));

  hadal::Sequence sequence = engine.start();
  hadal::GenerationOptions generation;
  generation.max_tokens = 16;
  generation.sampling.seed = 1;
  generation.stop_tokens = {engine.info().eos_token};
  HADAL_ASSIGN_OR_RETURN(const hadal::Generation result, engine.generate(sequence, prompt, generation));
  return result.text;
}

TEST(LibraryExample, Answers) {
  const auto text = answer("Why is the sea salty?");
  ASSERT_TRUE(text.has_value()) << text.error().message();
  EXPECT_FALSE(text->empty());
}
