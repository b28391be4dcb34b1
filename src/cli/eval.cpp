// hadal eval: perplexity on a text; a needle in a haystack and key-value recall at chosen lengths and depths.
// (Arithmetic and calls of tools: eval_answers.)
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "base/rng.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/eval_answers.h"
#include "cli/progress.h"
#include "cli/prompt.h"
#include "embedded_model.h"
#include "engine/embedded.h"
#include "model/transformer.h"
#include "text/chat_dialect.h"

namespace hadal::cli {
namespace {

using Json = nlohmann::ordered_json;

struct EvalArguments {
  EngineOptions engine;
  bool json = false;
  // ppl
  std::string file;
  std::int64_t context = 4096, max_tokens = 0;
  // needle, recall
  std::vector<std::int64_t> lengths = {4096};
  std::vector<double> depths = {0, 0.25, 0.5, 0.75, 1};
  std::int64_t trials = 4;
  std::uint64_t seed = 0;
  bool chat = false;
  std::string haystack;
};

Status stopped() {
  return interrupted() ? Status(fail(ErrorCode::cancelled, "stopped")) : Status();
}

// Perplexity -----------------------------------------------------------------------------------------------

// -log softmax(logits)[token], in double.
double surprise(std::span<const float> logits, std::int32_t token) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - most);
  return std::log(sum) + most - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

struct ScoredModel {
  Model model;
  Tokenizer tokenizer;
};

// The directory of -m, or the embedded model.
Result<ScoredModel> open_scored(const EngineOptions& options) {
  if (!options.model.empty()) {
    HADAL_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::load(options.model));
    HADAL_ASSIGN_OR_RETURN(Model model, Model::load(options.model, options.notice));
    return ScoredModel{std::move(model), std::move(tokenizer)};
  }
  HADAL_ASSIGN_OR_RETURN(Model model, load_embedded_model(options.notice));
  HADAL_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::from_json(embedded_model().tokenizer_json));
  return ScoredModel{std::move(model), std::move(tokenizer)};
}

Status perplexity(const EvalArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(arguments.file));
  HADAL_RETURN_IF_ERROR(check_utf8(text, arguments.file));
  HADAL_ASSIGN_OR_RETURN(const ScoredModel opened, open_scored(arguments.engine));
  const Model& model = opened.model;
  const Tokenizer& tokenizer = opened.tokenizer;
  HADAL_ASSIGN_OR_RETURN(std::vector<std::int32_t> tokens, tokenizer.encode(text));
  if (arguments.max_tokens > 0 && static_cast<std::int64_t>(tokens.size()) > arguments.max_tokens)
    tokens.resize(static_cast<std::size_t>(arguments.max_tokens));
  if (tokens.empty())
    return fail(ErrorCode::invalid_argument, fmt::format("{}: empty; give it some text", arguments.file));
  HADAL_ASSIGN_OR_RETURN(const std::string scored, tokenizer.decode(tokens));
  HADAL_RETURN_IF_ERROR(apply_memory_options(arguments.engine));
  ThreadPool pool(arguments.engine.threads, arguments.engine.pin_threads);
  HADAL_ASSIGN_OR_RETURN(const auto backend,
                         make_backend(arguments.engine.backend, arguments.engine.isa, pool));
  Numerics numerics = model.quantised() ? Numerics::official : Numerics::exact;
  if (!arguments.engine.numerics.empty()) {
    HADAL_ASSIGN_OR_RETURN(numerics, numerics_from_string(arguments.engine.numerics));
  }
  HADAL_RETURN_IF_ERROR(check_numerics(model, numerics, *backend));
  Transformer transformer(model, *backend, numerics);
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  const auto bos = static_cast<std::int32_t>(model.config().bos_token_id);
  const auto context =
      static_cast<std::size_t>(std::min(arguments.context, model.config().max_position_embeddings));
  double sum = 0;
  Progress bar;
  // Windows of `context` positions, each from a fresh state: BOS, then tokens of which every one is
  // predicted.
  for (std::size_t begin = 0; begin < tokens.size();) {
    const std::size_t n = std::min(context, tokens.size() - begin);
    std::vector<std::int32_t> input = {bos};
    input.insert(input.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                 tokens.begin() + static_cast<std::ptrdiff_t>(begin + n - 1));
    SequenceState state(model.state_layout());
    constexpr std::size_t kChunk = 256;
    for (std::size_t at = 0; at < input.size(); at += kChunk) {
      const auto part = std::span(input).subspan(at, std::min(kChunk, input.size() - at));
      const BatchItem item{&state, part, BatchItem::Logits::all};
      HADAL_ASSIGN_OR_RETURN(const auto logits, transformer.forward({&item, 1}));
      for (std::size_t i = 0; i < part.size(); ++i)
        sum += surprise(logits.subspan(i * vocab, vocab), tokens[begin + at + i]);
      HADAL_RETURN_IF_ERROR(stopped());
    }
    begin += n;
    bar.show(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(tokens.size()), "tokens");
  }
  bar.clear();
  const double nats = sum / static_cast<double>(tokens.size());
  const double bits_per_byte = sum / std::log(2.0) / static_cast<double>(scored.size());
  if (arguments.json) {
    const Json json = {{"task", "ppl"},
                       {"file", arguments.file},
                       {"tokens", tokens.size()},
                       {"bytes", scored.size()},
                       {"context", context},
                       {"ce", nats},
                       {"perplexity", std::exp(nats)},
                       {"bits_per_byte", bits_per_byte}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("perplexity {:.4f} ({:.4f} nats a token, {:.4f} bits a byte) over {} tokens, context {}\n",
               std::exp(nats), nats, bits_per_byte, tokens.size(), context);
  }
  return {};
}

// Retrieval ------------------------------------------------------------------------------------------------

constexpr std::string_view kHaystack[] = {"The grass is green. ", "The sky is blue. ", "The sun is yellow. ",
                                          "Here we go. ", "There and back again. "};

// Words to ask for and the numbers that are the answers, from a counter.
class NeedleDraws {
 public:
  explicit NeedleDraws(std::uint64_t seed) : random_(seed, 0x6e656564) {}
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random_.uniform(counter_++) * static_cast<double>(n));
  }
  std::string number() { return std::to_string(10000 + below(90000)); }
  std::string key() {
    constexpr std::string_view kConsonants = "bdfgklmnprstvz", kVowels = "aeiou";
    std::string word;
    for (int i = 0; i < 3; ++i) {
      word += kConsonants[static_cast<std::size_t>(below(static_cast<std::int64_t>(kConsonants.size())))];
      word += kVowels[static_cast<std::size_t>(below(static_cast<std::int64_t>(kVowels.size())))];
    }
    return word;
  }

 private:
  Philox random_;
  std::uint64_t counter_ = 0;
};

// Sentences of the haystack one after another, with what each costs in tokens.
class Haystack {
 public:
  static Result<Haystack> create(const Tokenizer& tokenizer, const std::string& file) {
    Haystack haystack;
    std::vector<std::string> pieces(std::begin(kHaystack), std::end(kHaystack));
    if (!file.empty()) {
      HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(file));
      HADAL_RETURN_IF_ERROR(check_utf8(text, file));
      pieces.clear();
      for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
        pieces.push_back(text.substr(at, end - at));
        at = end;
      }
      if (pieces.empty())
        return fail(ErrorCode::invalid_argument, fmt::format("{}: empty; give it some text", file));
    }
    for (std::string& piece : pieces) {
      HADAL_ASSIGN_OR_RETURN(const auto ids, tokenizer.encode(piece));
      haystack.pieces_.emplace_back(std::move(piece), static_cast<std::int64_t>(ids.size()));
    }
    return haystack;
  }
  // About `tokens` of it, with `needle` after the share `depth`.
  std::string around(const std::string& needle, double depth, std::int64_t tokens) const {
    std::string text;
    bool placed = false;
    std::int64_t used = 0;
    for (std::size_t i = 0; used < tokens; ++i) {
      if (!placed && static_cast<double>(used) >= depth * static_cast<double>(tokens)) {
        text += needle;
        placed = true;
      }
      text += pieces_[i % pieces_.size()].first;
      used += std::max<std::int64_t>(1, pieces_[i % pieces_.size()].second);
    }
    return placed ? text : text + needle;
  }

 private:
  std::vector<std::pair<std::string, std::int64_t>> pieces_;
};

// A model that is asked: reads a prompt and continues it greedily.
class Asked {
 public:
  Asked(const Engine& engine, bool chat) : engine_(engine), chat_(chat) {}

  // The tokens of a text and the question behind it; in the chat encoding both are one user turn.
  Result<std::vector<std::int32_t>> prompt(const std::string& text, const std::string& question) const {
    std::vector<std::int32_t> tokens = {engine_.info().bos_token};
    if (chat_) {
      HADAL_ASSIGN_OR_RETURN(const ChatDialect* const dialect, dialect_of_config(engine_.info().config_json));
      const ChatMessage message = text_message("user", text + question);
      return encode_turn(engine_.tokenizer(), *dialect, chat_options(*dialect, "off"),
                         std::span(&message, 1));
    }
    HADAL_ASSIGN_OR_RETURN(const auto ids, engine_.tokenizer().encode(text + question));
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    return tokens;
  }
  // Whether the continuation of `sequence` after `tokens` begins with the answer (raw) or has it (chat).
  Result<bool> answers(Sequence& sequence, std::span<const std::int32_t> tokens,
                       const std::string& answer) const {
    GenerationOptions options;
    options.sampling.temperature = 0;
    HADAL_ASSIGN_OR_RETURN(const auto ids, engine_.tokenizer().encode(" " + answer));
    options.max_tokens = static_cast<std::int64_t>(ids.size()) + (chat_ ? 24 : 1);
    options.stop_tokens = {engine_.info().eos_token};
    options.cancelled = interrupted;
    HADAL_ASSIGN_OR_RETURN(const Generation generation, engine_.generate(sequence, tokens, options));
    HADAL_RETURN_IF_ERROR(stopped());
    const std::size_t at = generation.text.find(answer);
    return chat_ ? at != std::string::npos
                 : at == generation.text.find_first_not_of(' ') && at != std::string::npos;
  }

 private:
  const Engine& engine_;
  bool chat_;
};

struct EvalRow {
  std::int64_t length = 0;
  double depth = 0;
  std::int64_t tokens = 0;  // of the last trial's prompt
  std::int64_t correct = 0, trials = 0;
};

Status check_length(const Engine& engine, std::int64_t length) {
  if (length <= engine.info().context) return {};
  return fail(ErrorCode::invalid_argument,
              fmt::format("--lengths {}: the model's context is {} tokens", length, engine.info().context));
}

Status print_rows(const EvalArguments& arguments, const char* task, std::span<const EvalRow> rows) {
  std::int64_t correct = 0, trials = 0;
  for (const EvalRow& row : rows) {
    correct += row.correct;
    trials += row.trials;
  }
  const auto share = [](std::int64_t a, std::int64_t b) {
    return static_cast<double>(a) / static_cast<double>(std::max<std::int64_t>(b, 1));
  };
  if (arguments.json) {
    Json json = {{"task", task}, {"rows", Json::array()}, {"accuracy", share(correct, trials)}};
    for (const EvalRow& row : rows) {
      json["rows"].push_back({{"length", row.length},
                              {"depth", row.depth},
                              {"tokens", row.tokens},
                              {"correct", row.correct},
                              {"trials", row.trials},
                              {"accuracy", share(row.correct, row.trials)}});
    }
    fmt::print("{}\n", json.dump());
    return {};
  }
  fmt::print("{:>9} {:>6} {:>9} {:>9}\n", "length", "depth", "tokens", "correct");
  for (const EvalRow& row : rows)
    fmt::print("{:>9} {:>6.2f} {:>9} {:>9}\n", row.length, row.depth, row.tokens,
               fmt::format("{}/{}", row.correct, row.trials));
  fmt::print("accuracy {:.4f} ({} of {})\n", share(correct, trials), correct, trials);
  return {};
}

// "The magic number of tabino is 48213." somewhere in a haystack; each trial is a text of its own.
Status needle(const EvalArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const Engine engine, Engine::open(arguments.engine));
  HADAL_ASSIGN_OR_RETURN(const Haystack haystack, Haystack::create(engine.tokenizer(), arguments.haystack));
  const Asked asked(engine, arguments.chat);
  NeedleDraws draws(arguments.seed);
  std::vector<EvalRow> rows;
  Progress bar;
  const auto total =
      static_cast<std::int64_t>(arguments.lengths.size() * arguments.depths.size()) * arguments.trials;
  std::int64_t done = 0;
  for (const std::int64_t length : arguments.lengths) {
    HADAL_RETURN_IF_ERROR(check_length(engine, length));
    for (const double depth : arguments.depths) {
      EvalRow row{length, depth, 0, 0, arguments.trials};
      for (std::int64_t trial = 0; trial < arguments.trials; ++trial) {
        const std::string key = draws.key(), value = draws.number();
        const std::string fact = fmt::format("The magic number of {} is {}. ", key, value);
        const std::string question = arguments.chat ? fmt::format("\nWhat is the magic number of {}?", key)
                                                    : fmt::format("\nThe magic number of {} is", key);
        HADAL_ASSIGN_OR_RETURN(const auto bare, asked.prompt(fact, question));
        // Room for the answer too.
        const std::int64_t room = length - static_cast<std::int64_t>(bare.size()) - 48;
        HADAL_ASSIGN_OR_RETURN(const auto tokens, asked.prompt(haystack.around(fact, depth, room), question));
        Sequence sequence = engine.start();
        HADAL_ASSIGN_OR_RETURN(const bool right, asked.answers(sequence, tokens, value));
        row.correct += right ? 1 : 0;
        row.tokens = static_cast<std::int64_t>(tokens.size());
        bar.show(++done, total, fmt::format("{} tokens", length));
      }
      rows.push_back(row);
    }
  }
  bar.clear();
  return print_rows(arguments, "needle", rows);
}

// Lines "tabino = 48213" up to the length; each trial asks for the one at the depth. A text is read once and
// forked for every question.
Status recall(const EvalArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const Engine engine, Engine::open(arguments.engine));
  const Asked asked(engine, false);
  NeedleDraws draws(arguments.seed);
  std::vector<EvalRow> rows;
  Progress bar;
  const auto total = static_cast<std::int64_t>(arguments.lengths.size()) * arguments.trials;
  std::int64_t done = 0;
  for (const std::int64_t length : arguments.lengths) {
    HADAL_RETURN_IF_ERROR(check_length(engine, length));
    std::vector<EvalRow> of_length;
    for (const double depth : arguments.depths) of_length.push_back({length, depth, 0, 0, arguments.trials});
    for (std::int64_t trial = 0; trial < arguments.trials; ++trial) {
      std::vector<std::pair<std::string, std::string>> pairs;
      std::vector<std::int32_t> tokens = {engine.info().bos_token};
      std::vector<std::string> keys;
      while (static_cast<std::int64_t>(tokens.size()) < length - 64) {
        std::string key = draws.key();
        // A key that came before would have two answers; of long texts six letters are not enough.
        while (std::find(keys.begin(), keys.end(), key) != keys.end()) key += draws.key();
        keys.insert(std::upper_bound(keys.begin(), keys.end(), key), key);
        pairs.emplace_back(key, draws.number());
        HADAL_ASSIGN_OR_RETURN(const auto line,
                               engine.tokenizer().encode(fmt::format("{} = {}\n", key, pairs.back().second)));
        tokens.insert(tokens.end(), line.begin(), line.end());
      }
      Sequence text = engine.start();
      constexpr std::size_t kPart = 4096;  // between two looks at Ctrl-C
      for (std::size_t at = 0; at < tokens.size(); at += kPart) {
        HADAL_RETURN_IF_ERROR(
            text.append(std::span(tokens).subspan(at, std::min(kPart, tokens.size() - at))));
        HADAL_RETURN_IF_ERROR(stopped());
      }
      for (EvalRow& row : of_length) {
        const auto last = static_cast<double>(pairs.size() - 1);
        const auto& [key, value] = pairs[static_cast<std::size_t>(std::llround(row.depth * last))];
        HADAL_ASSIGN_OR_RETURN(const auto question, engine.tokenizer().encode(key + " ="));
        Sequence sequence = text.fork();
        HADAL_ASSIGN_OR_RETURN(const bool right, asked.answers(sequence, question, value));
        row.correct += right ? 1 : 0;
        row.tokens = static_cast<std::int64_t>(tokens.size() + question.size());
      }
      bar.show(++done, total, fmt::format("{} tokens", length));
    }
    rows.insert(rows.end(), of_length.begin(), of_length.end());
  }
  bar.clear();
  return print_rows(arguments, "recall", rows);
}

void add_places(CLI::App& command, EvalArguments& arguments) {
  command.add_option("--lengths", arguments.lengths, "Tokens of the text, up to the model's context")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{128}, std::int64_t{1} << 24));
  command.add_option("--depths", arguments.depths, "Where in it, from 0 (the beginning) to 1 (the end)")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0));
  command.add_option("--trials", arguments.trials, "Texts for each length")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--seed", arguments.seed, "Of keys and values")->capture_default_str();
}

}  // namespace

void register_eval(CLI::App& app, Outcome& outcome) {
  CLI::App* const command =
      app.add_subcommand("eval", "Measure a model: perplexity, retrieval over long contexts, answers");
  command->require_subcommand(1);
  const auto arguments = std::make_shared<EvalArguments>();
  const auto add = [&](const char* name, const char* what, auto work) {
    CLI::App* const task = command->add_subcommand(name, what);
    add_engine_options(*task, arguments->engine);
    task->add_flag("--json", arguments->json, "The numbers as JSON");
    task->callback([arguments, &outcome, work] {
      catch_interrupt();
      const Status status = work(*arguments);
      outcome.exit_code = status ? kDone : report(status.error());
    });
    return task;
  };
  CLI::App* const ppl = add("ppl", "Perplexity on a text", perplexity);
  ppl->add_option("--context", arguments->context, "Tokens that a window of the text may look back over")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  ppl->add_option("--max-tokens", arguments->max_tokens, "Only the first N tokens of the text")
      ->check(CLI::PositiveNumber);
  ppl->add_option("FILE", arguments->file, "Text, UTF-8")->required();
  ppl->footer("Example: hadal eval ppl -m models/nano --context 1024 held_out.txt");
  CLI::App* const in_haystack = add("needle", "A number hidden in a long text, asked for at its end", needle);
  add_places(*in_haystack, *arguments);
  in_haystack->add_flag("--chat", arguments->chat,
                        "Ask in the chat encoding; else the text is continued as it is");
  in_haystack->add_option("--haystack", arguments->haystack,
                          "A text to hide it in; by default five short sentences again and again");
  in_haystack->footer(
      "Example: hadal eval needle -m models/nano --lengths 4096,65536 --depths 0,0.5,1 --json");
  CLI::App* const pairs = add("recall", "The value of one of many keys", recall);
  add_places(*pairs, *arguments);
  pairs->footer("Example: hadal eval recall -m models/nano --lengths 4096,65536");
  const auto add_answers = [&](const char* name, const char* what, auto work) {
    const auto options = std::make_shared<AnswerOptions>();
    CLI::App* const task = add(name, what, [options, work](const EvalArguments& all) {
      options->json = all.json;
      return work(all.engine, *options);
    });
    task->add_option("--trials", options->trials, "Questions of each kind")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    task->add_option("--seed", options->seed, "Of the questions")->capture_default_str();
    task->footer(fmt::format("Example: hadal eval {} -m models/nano --json", name));
  };
  add_answers("arithmetic", "Sums, differences and products, with a thinking span", eval_arithmetic);
  add_answers("tools", "Calls of declared tools: calculator, clock, read_file", eval_tools);
}

}  // namespace hadal::cli
