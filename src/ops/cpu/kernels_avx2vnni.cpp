// AVX2 with the dot product of bytes in 256 bits: as AVX-VNNI encodes it (Alder Lake and later) or, so that
// the same kernels run where there is AVX-512 only, as AVX-512 VNNI does.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <cpuid.h>

#include "base/huge_pages.h"
#include "ops/cpu/int8_tiles.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/target.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

HADAL_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
namespace hadal::cpu::avx2vnni::vex {
namespace {

#include "ops/cpu/avx2_vectors.inc"

inline __m256i dot4(__m256i sum, __m256i a, __m256i b) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
}

#include "ops/cpu/avx2vnni.inc"

}  // namespace
}  // namespace hadal::cpu::avx2vnni::vex
HADAL_TARGET_END

HADAL_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512vl,avx512vnni")
namespace hadal::cpu::avx2vnni::evex {
namespace {

#include "ops/cpu/avx2_vectors.inc"  // NOLINT(readability-duplicate-include): once per encoding

inline __m256i dot4(__m256i sum, __m256i a, __m256i b) {
  asm("%{evex%} vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

#include "ops/cpu/avx2vnni.inc"  // NOLINT(readability-duplicate-include)

}  // namespace
}  // namespace hadal::cpu::avx2vnni::evex
HADAL_TARGET_END

namespace hadal::cpu::avx2vnni {
namespace {

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1U << 4) != 0;
}
bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels kTable = has_avx_vnni() ? vex::kernel_table() : evex::kernel_table();
  return kTable;
}

bool supported() {
  return avx2::supported() && (has_avx_vnni() || has_avx512_vnni());
}

}  // namespace hadal::cpu::avx2vnni

#endif
