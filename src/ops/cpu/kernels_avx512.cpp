// AVX-512 (F, BW, VL, DQ). The int8 linears are those of AVX2.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "base/buffer.h"
#include "base/huge_pages.h"
#include "ops/attention_rows.h"
#include "ops/cpu/int8_tiles.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace hadal::cpu::avx512 {
namespace {

#include "ops/cpu/avx512_vectors.inc"

// At most 4 * 96 * 48 in 16 bits.
inline Ints dot8(Ints sum, Ints a0, Ints b0, Ints a1, Ints b1) {
  const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(a0, b0), _mm512_maddubs_epi16(a1, b1));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

#include "ops/cpu/kernels.inc"

}  // namespace

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = kernel_table("avx512");
    avx2::use_int8_kernels(table);
    return table;
  }();
  return kTable;
}

}  // namespace hadal::cpu::avx512
HADAL_TARGET_END

namespace hadal::cpu::avx512 {
bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}
}  // namespace hadal::cpu::avx512

#endif
