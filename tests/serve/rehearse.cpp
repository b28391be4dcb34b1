// rehearse [dialect]: a Rehearsal per line of stdin, {"api": "chat" | "responses" | "messages", "body": TEXT,
// "output": TEXT}; a line {"status", "prompt", "answer"} for each on stdout. For tests in Python that have
// more to compare than they could ask a server for.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include <hadal/engine.h>

#include "serve/rehearsal.h"
#include "text/json_value.h"

int main(int argc, char** argv) {
  using namespace hadal;
  const auto dialect = find_dialect(argc > 1 ? argv[1] : "v4-0731");
  EngineOptions options;
  options.threads = 1;
  const auto engine = Engine::open(options);
  if (!dialect || !engine) {
    std::fprintf(stderr, "rehearse: no such dialect, or no embedded model\n");
    return 1;
  }
  const test::Rehearsal rehearsal(engine->tokenizer(), **dialect);
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto json = serve::Json::parse(line);
    const std::string api = json["api"];
    const auto tokens = engine->tokenizer().encode_with_specials(json["output"].get<std::string>());
    if (!tokens) return 1;
    const test::Rehearsed rehearsed = rehearsal.run(api == "messages"    ? serve::Api::messages
                                                    : api == "responses" ? serve::Api::responses
                                                                         : serve::Api::chat,
                                                    json["body"].get<std::string>(), *tokens);
    std::cout << serve::to_text({{"status", rehearsed.status},
                                 {"prompt", rehearsed.prompt},
                                 {"answer", rehearsed.answer}})
              << '\n';
  }
  return 0;
}
