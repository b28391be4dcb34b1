#include "cli/engine_options.h"

#include <csignal>
#include <cstdio>

#include "model/forward.h"

namespace hadal::cli {
namespace {

volatile std::sig_atomic_t g_interrupts = 0;  // a signal handler has nowhere else to write

void on_interrupt(int /*signal*/) {
  g_interrupts = g_interrupts + 1;
  if (g_interrupts > 1) std::_Exit(130);
}

}  // namespace

void add_engine_options(CLI::App& command, EngineOptions& options) {
  command
      .add_option("-m,--model", options.model,
                  "Model directory (config.json, *.safetensors, tokenizer.json); "
                  "without it the embedded default model")
      ->type_name("DIR");
  command.add_option("--threads", options.threads, "Threads; 0 for all")
      ->envname("HADAL_THREADS")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command.add_flag("--pin", options.pin_threads, "Tie each thread to a core of its own");
  command
      .add_option("--numerics", options.numerics,
                  "exact, qsim, official or int8; by default official if any weight is quantised, else exact")
      ->check(CLI::IsMember({"exact", "qsim", "official", "int8"}));
  command
      .add_option("--state", options.state,
                  "How sequences keep their rows: compact (FP8, FP4) or f32; by default compact, "
                  "but f32 with exact numerics")
      ->check(CLI::IsMember({"f32", "compact"}));
  command
      .add_option("--backend", options.backend,
                  "cpu; cuda, in builds with HADAL_CUDA; or ref: the plain reference, slow")
      ->check(CLI::IsMember({"cpu", "cuda", "ref"}))
      ->capture_default_str();
  command
      .add_option("--isa", options.isa,
                  "Force an instruction set: avx512bf16, avx512vnni, avx512, avx2vnni, avx2 or scalar")
      ->envname("HADAL_ISA");
  command
      .add_option(
          "--memory", options.memory_bytes,
          "Memory of the whole process, like 12G or 900M: routed experts are read from disk as they are "
          "wanted; by default all weights are mapped")
      ->transform(CLI::AsSizeValue(true))
      ->type_name("BYTES");
  command
      .add_option("--memory-tokens", options.memory_tokens,
                  "With --memory: tokens of context to set memory aside for; by default 16384")
      ->check(CLI::NonNegativeNumber);
  command
      .add_option_function<std::string>(
          "--huge-pages", [&options](const std::string& given) { options.huge_pages = given == "on"; },
          "on, or off: no huge pages in this process")
      ->check(CLI::IsMember({"on", "off"}))
      ->default_str("on");
  command
      .add_option("--numa", options.numa,
                  "interleave memory over the NUMA nodes, or off; by default interleave if there are several")
      ->check(CLI::IsMember({"interleave", "off"}));
  options.notice = notice;
}

void notice(std::string_view text) {
  std::fprintf(stderr, "hadal: %.*s\n", static_cast<int>(text.size()), text.data());
}

Status apply_memory_options(const EngineOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const NumaPolicy numa, numa_policy_from_string(options.numa));
  apply_memory_policy({options.huge_pages, numa}, options.notice);
  return {};
}

void catch_interrupt() {
  std::signal(SIGINT, on_interrupt);
}
bool interrupted() {
  return g_interrupts > 0;
}
void clear_interrupt() {
  g_interrupts = 0;
}

}  // namespace hadal::cli
