#include "cli/command.h"

#include <cstdio>

namespace hadal::cli {

int report(const Error& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "hadal: %s\n", error.message().c_str());
  return kFailed;
}

}  // namespace hadal::cli
