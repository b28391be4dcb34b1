#include "plan/hardware.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/cpu/target.h"

namespace hadal {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sums 16 lanes so that the reads cannot be left out.
float read_all(const float* p, std::size_t n) {
  float lane[64] = {};
  for (std::size_t i = 0; i + 64 <= n; i += 64) {
    for (std::size_t j = 0; j < 64; ++j) lane[j] += p[i + j];
  }
  float sum = 0;
  for (const float x : lane) sum += x;
  return sum;
}

// Enough independent chains to hide the latency of the units; the result is used by nobody but must exist.
constexpr int kChains = 12;
constexpr std::int64_t kRounds = 400'000;

float portable_rounds() {
  float chain[kChains * 4];
  std::fill(std::begin(chain), std::end(chain), 1.0F);
  for (std::int64_t i = 0; i < kRounds; ++i) {
    for (float& x : chain) x = x * 0.999F + 0.001F;
  }
  return chain[0] + chain[kChains * 4 - 1];
}
constexpr double kPortableOperations = 2.0 * kChains * 4;

}  // namespace

#if defined(__x86_64__)
// kRounds of `step` on kChains vectors that begin at `start`. A macro, because a template would not have the
// instructions that its argument's function may use.
#define HADAL_ROUNDS(name, Vector, start, step, add, lane0)               \
  static float name() {                                                   \
    Vector chain[kChains];                                                \
    for (auto& x : chain) x = start;                                      \
    for (std::int64_t i = 0; i < kRounds; ++i) {                          \
      for (auto& x : chain) x = step;                                     \
    }                                                                     \
    for (int i = 1; i < kChains; ++i) chain[0] = add(chain[0], chain[i]); \
    return lane0(chain[0]);                                               \
  }

HADAL_TARGET_BEGIN("avx2,fma")
HADAL_ROUNDS(avx2_rounds, __m256, _mm256_set1_ps(1),
             _mm256_fmadd_ps(x, _mm256_set1_ps(0.999F), _mm256_set1_ps(0.001F)), _mm256_add_ps,
             _mm256_cvtss_f32)
HADAL_TARGET_END
HADAL_TARGET_BEGIN("avx512f")
HADAL_ROUNDS(avx512_rounds, __m512, _mm512_set1_ps(1),
             _mm512_fmadd_ps(x, _mm512_set1_ps(0.999F), _mm512_set1_ps(0.001F)), _mm512_add_ps,
             _mm512_cvtss_f32)
HADAL_TARGET_END
HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512bf16")
static __m512 dot_bf16(__m512 sum) {
  const __m512i bits = _mm512_set1_epi32(0x3c003c00);  // pairs of 2^-7
  __m512bh a;
  std::memcpy(&a, &bits, sizeof(a));
  return _mm512_dpbf16_ps(sum, a, a);
}
HADAL_ROUNDS(bf16_rounds, __m512, _mm512_set1_ps(1), dot_bf16(x), _mm512_add_ps, _mm512_cvtss_f32)
HADAL_TARGET_END
HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512vnni")
static float lane0(__m512i v) {
  std::int32_t lane[16];
  _mm512_storeu_si512(lane, v);
  return static_cast<float>(lane[0]);
}
HADAL_ROUNDS(int8_rounds, __m512i, _mm512_setzero_si512(),
             _mm512_dpbusd_epi32(x, _mm512_set1_epi8(1), _mm512_set1_epi8(1)), _mm512_add_epi32, lane0)
HADAL_TARGET_END
#undef HADAL_ROUNDS
#endif

namespace {

double measure_rounds(ThreadPool& pool, double seconds, float (*rounds)(), double operations_per_round) {
  std::vector<float> sink(static_cast<std::size_t>(pool.size()));
  double operations = 0, elapsed = 0;
  const auto start = Clock::now();
  do {
    pool.parallel_for(pool.size(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) sink[static_cast<std::size_t>(i)] = rounds();
    });
    operations += operations_per_round * static_cast<double>(kRounds) * pool.size();
    elapsed = seconds_since(start);
  } while (elapsed < seconds);
  return operations / elapsed / 1e9;
}

}  // namespace

ReadBandwidth::ReadBandwidth(std::size_t bytes, ThreadPool& pool)
    : pool_(pool), memory_(bytes / sizeof(float)) {}

double ReadBandwidth::measure() {
  const std::size_t share = memory_.size() / static_cast<std::size_t>(pool_.size());
  std::vector<float> sink(static_cast<std::size_t>(pool_.size()));
  const auto start = Clock::now();
  pool_.parallel_for(pool_.size(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<std::size_t>(i);
      sink[at] = read_all(memory_.data() + at * share, share);
    }
  });
  return static_cast<double>(share * static_cast<std::size_t>(pool_.size()) * sizeof(float)) /
         seconds_since(start) / 1e9;
}

ArithmeticPeaks measure_arithmetic(ThreadPool& pool, double seconds) {
  ArithmeticPeaks peaks;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vnni"))
    peaks.int8_gops = measure_rounds(pool, seconds, int8_rounds, 8.0 * 16 * kChains);
  if (__builtin_cpu_supports("avx512bf16"))
    peaks.bf16_gflops = measure_rounds(pool, seconds, bf16_rounds, 4.0 * 16 * kChains);
  if (__builtin_cpu_supports("avx512f")) {
    peaks.f32_gflops = measure_rounds(pool, seconds, avx512_rounds, 2.0 * 16 * kChains);
    return peaks;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    peaks.f32_gflops = measure_rounds(pool, seconds, avx2_rounds, 2.0 * 8 * kChains);
    return peaks;
  }
#endif
  peaks.f32_gflops = measure_rounds(pool, seconds, portable_rounds, kPortableOperations);
  return peaks;
}

}  // namespace hadal
