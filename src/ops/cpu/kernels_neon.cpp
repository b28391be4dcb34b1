// Advanced SIMD, which every aarch64 processor has.
#if defined(__aarch64__)

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

namespace hadal::cpu::neon {
namespace {

// Lane by lane sum + a . b over four bytes each, magnitudes at most 127: two products fit 16 bits.
inline int32x4_t dot16(int32x4_t sum, int8x16_t a, int8x16_t b) {
  return vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
}

#include "ops/cpu/aarch64_vectors.inc"
#include "ops/cpu/int8_bytes.inc"
#include "ops/cpu/kernels.inc"

}  // namespace

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = kernel_table("neon");
    table.round_input_int8 = int8::round_input;
    table.gemm_int8 = int8::gemm;
    return table;
  }();
  return kTable;
}

}  // namespace hadal::cpu::neon

#endif
