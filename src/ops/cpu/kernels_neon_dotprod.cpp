// Advanced SIMD with SDOT: an option of Armv8.2, always there from Armv8.4.
#if defined(__aarch64__)

#include <sys/auxv.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <arm_neon.h>

#include "base/buffer.h"
#include "base/huge_pages.h"
#include "ops/attention_rows.h"
#include "ops/cpu/int8_tiles.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

#if defined(__clang__)
HADAL_TARGET_BEGIN("dotprod")
#else
HADAL_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif
namespace hadal::cpu::neon_dotprod {
namespace {

// Lane by lane sum + a . b over four bytes each. clang 14 has vdotq_s32 only where the command line asks for
// it.
inline int32x4_t dot16(int32x4_t sum, int8x16_t a, int8x16_t b) {
  asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  return sum;
}

#include "ops/cpu/aarch64_vectors.inc"
#include "ops/cpu/int8_bytes.inc"
#include "ops/cpu/kernels.inc"

}  // namespace

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = kernel_table("neon_dotprod");
    table.round_input_int8 = int8::round_input;
    table.gemm_int8 = int8::gemm;
    return table;
  }();
  return kTable;
}

}  // namespace hadal::cpu::neon_dotprod
HADAL_TARGET_END

namespace hadal::cpu::neon_dotprod {
bool supported() {
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}
}  // namespace hadal::cpu::neon_dotprod

#endif
