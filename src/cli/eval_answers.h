// hadal eval arithmetic and hadal eval tools: fresh questions of the kinds that models/nano was trained on,
// in the chat encoding, answered greedily.
#pragma once

#include <cstdint>

#include <hadal/engine.h>

namespace hadal::cli {

struct AnswerOptions {
  std::int64_t trials = 50;  // of each kind of question
  std::uint64_t seed = 0;
  bool json = false;
};

// "What is 27 + 58?", with a thinking span; right if the answer behind it is the number and nothing else.
Status eval_arithmetic(const EngineOptions& engine, const AnswerOptions& options);

// calculator, clock and read_file are declared; right if the answer is one call of the tool that was asked
// for, with exactly the argument that the question has.
Status eval_tools(const EngineOptions& engine, const AnswerOptions& options);

}  // namespace hadal::cli
