// Portable C++: a vector is an array that the compiler may or may not vectorise. Products and sums round
// separately here, so results differ from the FMA sets in the last bits.
#include <algorithm>
#include <array>
#include <bit>
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

namespace hadal::cpu::scalar {
namespace {

struct Vec {
  std::array<float, 16> v;
};

template <class F>
inline Vec map(F&& f) {
  Vec out;
  for (std::size_t i = 0; i < 16; ++i) out.v[i] = f(i);
  return out;
}
inline Vec zero() {
  return Vec{};
}
inline Vec set1(float x) {
  return map([=](std::size_t) { return x; });
}
inline Vec load(const float* p) {
  Vec out;
  std::memcpy(out.v.data(), p, sizeof(out));
  return out;
}
inline void store(float* p, const Vec& a) {
  std::memcpy(p, a.v.data(), sizeof(a));
}
inline Vec add(const Vec& a, const Vec& b) {
  return map([&](std::size_t i) { return a.v[i] + b.v[i]; });
}
inline Vec sub(const Vec& a, const Vec& b) {
  return map([&](std::size_t i) { return a.v[i] - b.v[i]; });
}
inline Vec mul(const Vec& a, const Vec& b) {
  return map([&](std::size_t i) { return a.v[i] * b.v[i]; });
}
inline Vec div(const Vec& a, const Vec& b) {
  return map([&](std::size_t i) { return a.v[i] / b.v[i]; });
}
inline Vec min(const Vec& a, const Vec& b) {
  return map([&](std::size_t i) { return std::min(a.v[i], b.v[i]); });
}
inline Vec max(const Vec& a, const Vec& b) {
  return map([&](std::size_t i) { return std::max(a.v[i], b.v[i]); });
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  return map([&](std::size_t i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Vec round(const Vec& a) {
  return map([&](std::size_t i) { return std::nearbyint(a.v[i]); });
}
inline Vec sqrt(const Vec& a) {
  return map([&](std::size_t i) { return std::sqrt(a.v[i]); });
}
// Lane i is lane i ^ distance of a.
template <int kDistance>
inline Vec exchange(const Vec& a) {
  return map([&](std::size_t i) { return a.v[i ^ std::size_t{kDistance}]; });
}
// The power of two at or below |a|, 0 below 2^-126.
inline Vec leading_power(const Vec& a) {
  return map([&](std::size_t i) {
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(a.v[i]) & 0x7f800000U);
  });
}
// |a| with the sign of b
inline Vec copy_sign(const Vec& a, const Vec& b) {
  return map([&](std::size_t i) { return std::copysign(a.v[i], b.v[i]); });
}
inline Vec scale_by_power(const Vec& a, const Vec& n) {
  return map([&](std::size_t i) { return std::ldexp(a.v[i], static_cast<int>(n.v[i])); });
}
inline std::uint16_t load_u16(const std::byte* p, std::size_t i) {
  std::uint16_t h;
  std::memcpy(&h, p + 2 * i, 2);
  return h;
}
inline Vec load_bf16(const std::byte* p) {
  return map([&](std::size_t i) { return bf16_to_f32(load_u16(p, i)); });
}
inline Vec load_f16(const std::byte* p) {
  return map([&](std::size_t i) { return f16_to_f32(load_u16(p, i)); });
}
inline Vec load_e4m3(const std::byte* p) {
  return map([&](std::size_t i) { return e4m3_to_f32(std::to_integer<std::uint8_t>(p[i])); });
}
inline Vec load_e2m1(const std::byte* p) {
  return map([&](std::size_t i) {
    const auto pair = std::to_integer<std::uint8_t>(p[i / 2]);
    return e2m1_to_f32(i % 2 == 0 ? pair & 15 : pair >> 4);
  });
}

struct Ints {
  std::array<std::int32_t, 16> v;
};
constexpr std::int64_t kTilesAtOnce = 1;
inline Ints ints(std::int32_t i) {
  Ints out;
  out.v.fill(i);
  return out;
}
inline Ints load_ints(const void* p) {
  Ints out;
  std::memcpy(out.v.data(), p, sizeof(out));
  return out;
}
inline std::int32_t dot4(std::int32_t a, std::int32_t b) {
  std::int32_t sum = 0;
  for (int j = 0; j < 32; j += 8)
    sum += static_cast<std::uint8_t>(a >> j) * std::int32_t{static_cast<std::int8_t>(b >> j)};
  return sum;
}
inline Ints dot8(const Ints& sum, const Ints& a0, const Ints& b0, const Ints& a1, const Ints& b1) {
  Ints out;
  for (std::size_t i = 0; i < 16; ++i) out.v[i] = sum.v[i] + dot4(a0.v[i], b0.v[i]) + dot4(a1.v[i], b1.v[i]);
  return out;
}
inline Vec to_floats(const Ints& a) {
  return map([&](std::size_t i) { return static_cast<float>(a.v[i]); });
}
inline Vec relu(const Vec& a) {
  return map([&](std::size_t i) { return a.v[i] > 0 ? a.v[i] : 0.0F; });
}
inline Vec fused(const Vec& a, const Vec& b, const Vec& c) {
  return map([&](std::size_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline void store_ints(void* p, const Ints& a) {
  std::memcpy(p, a.v.data(), sizeof(a));
}
inline Ints add(const Ints& a, const Ints& b) {
  Ints out;
  for (std::size_t i = 0; i < 16; ++i) out.v[i] = a.v[i] + b.v[i];
  return out;
}
inline Ints shift_left(const Ints& a, const Ints& by) {
  Ints out;
  for (std::size_t i = 0; i < 16; ++i) out.v[i] = a.v[i] << by.v[i];
  return out;
}
inline Ints byte_of(const Ints& a, int i) {
  Ints out;
  for (std::size_t j = 0; j < 16; ++j) out.v[j] = a.v[j] >> (8 * i) & 255;
  return out;
}
template <int kOffset>
inline void offset_nibbles(const std::byte* from, Ints& low, Ints& high) {
  constexpr int kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  std::array<std::uint8_t, 64> bytes[2];
  for (std::size_t i = 0; i < 64; ++i) {
    const auto pair = std::to_integer<std::uint8_t>(from[i]);
    bytes[0][i] = static_cast<std::uint8_t>(kOffset + kDoubled[pair & 15]);
    bytes[1][i] = static_cast<std::uint8_t>(kOffset + kDoubled[pair >> 4]);
  }
  low = load_ints(bytes[0].data());
  high = load_ints(bytes[1].data());
}
inline Vec spread4(const float* p) {
  return map([&](std::size_t i) { return p[i / 4]; });
}
inline void load_e4m3_pairs(const std::byte* p, Vec& even, Vec& odd) {
  const auto value = [&](std::size_t i) {
    return 0x1p-8F * e4m3_to_f32(std::to_integer<std::uint8_t>(p[i]));
  };
  even = map([&](std::size_t i) { return value(2 * i); });
  odd = map([&](std::size_t i) { return value(2 * i + 1); });
}

using Reg = Vec;
constexpr std::int64_t kRegLanes = 16;
inline Reg load_reg(const float* p) {
  return load(p);
}
inline void keep(Reg& /*r*/) {}
constexpr int kTileRows = 1, kTileTokens = 1;
constexpr int kVectors = 8;  // that the registers hold

#include "ops/cpu/kernels.inc"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels kTable = kernel_table("scalar");
  return kTable;
}

}  // namespace hadal::cpu::scalar
