// Portable C++: a vector is an array that the compiler may or may not vectorise. Products and sums round
// separately here, so results differ from the FMA sets in the last bits.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "base/buffer.h"
#include "ops/attention_rows.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/target.h"
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

constexpr int kVectors = 8;  // that the registers hold

#include "ops/cpu/kernels.inc"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels kTable = kernel_table("scalar");
  return kTable;
}

}  // namespace hadal::cpu::scalar
