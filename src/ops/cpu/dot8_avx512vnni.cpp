// What AVX-512 VNNI gains over AVX-512 outside the int8 linears (kernels_avx512vnni.cpp): four products of
// bytes and their sum are one instruction, for the FP4 indexer and for few tokens of FP4 linears.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/huge_pages.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"
#include "tensor/codec.h"

HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
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

// clang-format off
#include "ops/cpu/vector_math.inc"
#include "ops/cpu/quantise_block.inc"
#include "ops/cpu/gemm_e4m3.inc"
#include "ops/cpu/index_tiles.inc"
// clang-format on

void gemm(const GemmArgs& p) {
  if (p.e4m3 != nullptr) return e4m3::gemm(p);
  avx512::kernels().gemm(p);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = avx512::kernels();
    table.isa = "avx512vnni";
    table.gemm = gemm;
    table.round_input_e4m3 = e4m3::round_input;
    table.index_unpack = index_unpack;
    table.index_scores = index_scores;
    install(table);
    return table;
  }();
  return kTable;
}

}  // namespace hadal::cpu::avx512vnni
HADAL_TARGET_END

#endif
