// Counter-based random numbers: the n-th draw of a (seed, stream) is a pure function of (seed, stream, n),
// so any part of a stream can be drawn on any thread, in any order, with the same result.
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011).
#pragma once

#include <array>
#include <cstdint>

namespace hadal {

class Philox {
 public:
  Philox(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  // Block `counter` of the stream: four independent uniform 32-bit words.
  std::array<std::uint32_t, 4> block(std::uint64_t counter) const {
    std::uint32_t x0 = static_cast<std::uint32_t>(counter), x1 = static_cast<std::uint32_t>(counter >> 32);
    std::uint32_t x2 = static_cast<std::uint32_t>(stream_), x3 = static_cast<std::uint32_t>(stream_ >> 32);
    std::uint32_t k0 = static_cast<std::uint32_t>(seed_), k1 = static_cast<std::uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53} * x0;
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * x2;
      x0 = static_cast<std::uint32_t>(p1 >> 32) ^ x1 ^ k0;
      x2 = static_cast<std::uint32_t>(p0 >> 32) ^ x3 ^ k1;
      x1 = static_cast<std::uint32_t>(p1);
      x3 = static_cast<std::uint32_t>(p0);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return {x0, x1, x2, x3};
  }

  // Uniform in [0, 1) with 53 bits.
  double uniform(std::uint64_t counter) const {
    const auto b = block(counter);
    return static_cast<double>((std::uint64_t{b[0]} << 21) ^ (b[1] >> 11)) * 0x1p-53;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
};

}  // namespace hadal
