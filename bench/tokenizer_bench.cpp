// Tokenising on one thread: bytes per second into ids and back, by kind of text and by length of the text.
// With HADAL_V4_TOKENIZER=tokenizer.json it is DeepSeek-V4's tokenizer that is measured, else the embedded
// model's, which has no merges.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>

#include <benchmark/benchmark.h>

#include <hadal/tokenizer.h>

#include "base/mapped_file.h"

namespace hadal {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer loaded = [] {
    const char* const named = std::getenv("HADAL_V4_TOKENIZER");
    auto result = Tokenizer::load(named != nullptr ? named : HADAL_DEFAULT_TOKENIZER);
    if (!result) {
      std::fprintf(stderr, "%s\n", result.error().message().c_str());
      std::exit(1);
    }
    return std::move(*result);
  }();
  return loaded;
}

enum Kind { kEnglish, kCode, kChinese, kDigits, kLetters };

std::string text_of(Kind kind, std::size_t n_bytes) {
  std::mt19937 rng(1);
  static const std::vector<std::string> words = {
      "the ",        "of ",     "and ",       "attention ", "model ",  "is ",      "a ",
      "compressed ", "sparse ", "in ",        "tokens ",    "with ",   "to ",      "expert ",
      "that ",       "for ",    "quantised ", "state, ",    "cache. ", "weights\n"};
  static const std::vector<std::string> code = {"  for (int i = 0; i < n; ++i) {\n",
                                                "    return x[i];\n",
                                                "  }\n",
                                                "const auto& value = ",
                                                "map.find(key)->second;\n",
                                                "if (!ok) ",
                                                "std::string name;\n"};
  static const std::vector<std::string> chinese = {"模型", "的", "是",   "注意力", "，",
                                                   "专家", "。", "我们", "计算",   "和"};
  std::string text;
  while (text.size() < n_bytes) {
    switch (kind) {
      case kEnglish:
        text += words[rng() % words.size()];
        break;
      case kCode:
        text += code[rng() % code.size()];
        break;
      case kChinese:
        text += chinese[rng() % chinese.size()];
        break;
      case kDigits:
        text += std::to_string(rng()) + ' ';
        break;
      case kLetters:
        text.push_back(static_cast<char>('a' + rng() % 26));
        break;
    }
  }
  return text;
}

void encode(benchmark::State& state, Kind kind) {
  const std::string text = text_of(kind, static_cast<std::size_t>(state.range(0)));
  std::size_t n_ids = 0;
  for (auto _ : state) {
    const auto ids = tokenizer().encode(text);
    n_ids = ids->size();
    benchmark::DoNotOptimize(ids);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(text.size()) * state.iterations());
  state.counters["bytes_per_id"] = static_cast<double>(text.size()) / static_cast<double>(n_ids);
}
BENCHMARK_CAPTURE(encode, english, kEnglish)->Arg(100)->Arg(10'000)->Arg(1'000'000);
BENCHMARK_CAPTURE(encode, code, kCode)->Arg(1'000'000);
BENCHMARK_CAPTURE(encode, chinese, kChinese)->Arg(1'000'000);
BENCHMARK_CAPTURE(encode, digits, kDigits)->Arg(1'000'000);
BENCHMARK_CAPTURE(encode, one_long_word, kLetters)->Arg(1'000'000);

void encode_with_specials(benchmark::State& state) {
  const std::string text = text_of(kCode, 1'000'000);
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().encode_with_specials(text));
  state.SetBytesProcessed(static_cast<std::int64_t>(text.size()) * state.iterations());
}
BENCHMARK(encode_with_specials);

void decode(benchmark::State& state) {
  const std::string text = text_of(kEnglish, 1'000'000);
  const auto ids = tokenizer().encode(text).value();
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().decode(ids));
  state.SetBytesProcessed(static_cast<std::int64_t>(text.size()) * state.iterations());
}
BENCHMARK(decode);

void stream_decode(benchmark::State& state) {
  const auto ids = tokenizer().encode(text_of(kChinese, 100'000)).value();
  for (auto _ : state) {
    StreamDecoder decoder(tokenizer());
    for (const std::int32_t id : ids) benchmark::DoNotOptimize(decoder.push(id));
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(ids.size()) * state.iterations());
}
BENCHMARK(stream_decode);

void load(benchmark::State& state) {
  const char* const named = std::getenv("HADAL_V4_TOKENIZER");
  const std::string json = read_file(named != nullptr ? named : HADAL_DEFAULT_TOKENIZER).value();
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::from_json(json));
  state.SetBytesProcessed(static_cast<std::int64_t>(json.size()) * state.iterations());
}
BENCHMARK(load)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace hadal

BENCHMARK_MAIN();
