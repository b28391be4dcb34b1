// The FP4 indexer with AVX-512 VNNI: four products and their sum in one instruction.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/cpu/target.h"
#include "tensor/codec.h"

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
namespace hadal::cpu::avx512vnni {
namespace {

#include "ops/cpu/avx512_vectors.inc"

// By hand, because of _mm512_dpbusd_epi32 g++ 12 makes a copy of the sum and reads its operands from memory
// again for every use: one load per product, where the first-level cache has one per cycle.
inline Ints dot4(Ints sum, Ints a, Ints b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
inline Ints dot8(Ints sum, Ints a0, Ints b0, Ints a1, Ints b1) {
  return dot4(dot4(sum, a0, b0), a1, b1);
}

#include "ops/cpu/index_tiles.inc"

}  // namespace

void use_index_kernels(Kernels& table) {
  table.index_unpack = index_unpack;
  table.index_scores = index_scores;
}

}  // namespace hadal::cpu::avx512vnni
HADAL_TARGET_END

#endif
