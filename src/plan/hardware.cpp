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
HADAL_TARGET_BEGIN("avx2,fma")
static float avx2_rounds() {
  __m256 chain[kChains];
  for (auto& x : chain) x = _mm256_set1_ps(1);
  const __m256 a = _mm256_set1_ps(0.999F), b = _mm256_set1_ps(0.001F);
  for (std::int64_t i = 0; i < kRounds; ++i) {
    for (auto& x : chain) x = _mm256_fmadd_ps(x, a, b);
  }
  float lane[8];
  for (int i = 1; i < kChains; ++i) chain[0] = _mm256_add_ps(chain[0], chain[i]);
  _mm256_storeu_ps(lane, chain[0]);
  return lane[0];
}
HADAL_TARGET_END
HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512bf16")
static float avx512_rounds() {
  __m512 chain[kChains];
  for (auto& x : chain) x = _mm512_set1_ps(1);
  const __m512 a = _mm512_set1_ps(0.999F), b = _mm512_set1_ps(0.001F);
  for (std::int64_t i = 0; i < kRounds; ++i) {
    for (auto& x : chain) x = _mm512_fmadd_ps(x, a, b);
  }
  for (int i = 1; i < kChains; ++i) chain[0] = _mm512_add_ps(chain[0], chain[i]);
  float lane[16];
  _mm512_storeu_ps(lane, chain[0]);
  return lane[0];
}
static float bf16_rounds() {
  __m512 chain[kChains];
  for (auto& x : chain) x = _mm512_set1_ps(1);
  __m512i bits = _mm512_set1_epi32(0x3c003c00);  // pairs of 2^-7
  __m512bh a;
  std::memcpy(&a, &bits, sizeof(a));
  for (std::int64_t i = 0; i < kRounds; ++i) {
    for (auto& x : chain) x = _mm512_dpbf16_ps(x, a, a);
  }
  for (int i = 1; i < kChains; ++i) chain[0] = _mm512_add_ps(chain[0], chain[i]);
  float lane[16];
  _mm512_storeu_ps(lane, chain[0]);
  return lane[0];
}
HADAL_TARGET_END
HADAL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512vnni")
static float int8_rounds() {
  __m512i chain[kChains];
  for (auto& x : chain) x = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(1);
  for (std::int64_t i = 0; i < kRounds; ++i) {
    for (auto& x : chain) x = _mm512_dpbusd_epi32(x, a, a);
  }
  for (int i = 1; i < kChains; ++i) chain[0] = _mm512_add_epi32(chain[0], chain[i]);
  std::int32_t lane[16];
  _mm512_storeu_si512(lane, chain[0]);
  return static_cast<float>(lane[0]);
}
HADAL_TARGET_END
#endif

namespace {

double measure_rounds(ThreadPool& pool, float (*rounds)(), double operations_per_round) {
  std::vector<float> sink(static_cast<std::size_t>(pool.size()));
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const auto start = Clock::now();
    pool.parallel_for(pool.size(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) sink[static_cast<std::size_t>(i)] = rounds();
    });
    const double total = operations_per_round * static_cast<double>(kRounds) * pool.size();
    best = std::max(best, total / seconds_since(start) / 1e9);
  }
  return best;
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

ArithmeticPeaks measure_arithmetic(ThreadPool& pool) {
  ArithmeticPeaks peaks;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vnni"))
    peaks.int8_gops = measure_rounds(pool, int8_rounds, 8.0 * 16 * kChains);
  if (__builtin_cpu_supports("avx512bf16")) {
    peaks.f32_gflops = measure_rounds(pool, avx512_rounds, 2.0 * 16 * kChains);
    peaks.bf16_gflops = measure_rounds(pool, bf16_rounds, 4.0 * 16 * kChains);
    return peaks;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    peaks.f32_gflops = measure_rounds(pool, avx2_rounds, 2.0 * 8 * kChains);
    return peaks;
  }
#endif
  peaks.f32_gflops = measure_rounds(pool, portable_rounds, kPortableOperations);
  return peaks;
}

}  // namespace hadal
