#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace hadal {

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "hadal: broken invariant at %s:%d: %s. This is a bug in hadal, please report it.\n",
               file, line, condition);
  std::abort();
}

}  // namespace hadal
