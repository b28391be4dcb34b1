#include "embedded_model.h"

// The assembler copies the files into .rodata; HADAL_EMBEDDED_MODEL is the directory they are in.
#define HADAL_EMBED(symbol, file)                                                                            \
  __asm__(".section .rodata\n.global " #symbol "_begin\n" #symbol "_begin:\n.incbin \"" HADAL_EMBEDDED_MODEL \
          "/" file "\"\n.global " #symbol "_end\n" #symbol "_end:\n.byte 0\n.previous\n");                   \
  extern "C" const char symbol##_begin[];                                                                    \
  extern "C" const char symbol##_end[]

HADAL_EMBED(hadal_embedded_config, "config.json");
HADAL_EMBED(hadal_embedded_tokenizer, "tokenizer.json");
HADAL_EMBED(hadal_embedded_weights, "model.safetensors");

namespace hadal {
namespace {

std::string_view between(const char* begin, const char* end) {
  return {begin, static_cast<std::size_t>(end - begin)};
}

}  // namespace

EmbeddedModel embedded_model() {
  return {between(hadal_embedded_config_begin, hadal_embedded_config_end),
          between(hadal_embedded_tokenizer_begin, hadal_embedded_tokenizer_end),
          between(hadal_embedded_weights_begin, hadal_embedded_weights_end)};
}

}  // namespace hadal
