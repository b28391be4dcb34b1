// Compressed rows (report sections 2.3.1 and 2.3.2, `Compressor` in the official model.py).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/ref/ref.h"
#include "ops/ref/reference_backend.h"

namespace hadal::ref {

void compress(const CompressParams& p, ThreadPool& pool) {
  const std::int64_t m = p.ratio, c = p.dim;
  const std::int64_t wide = p.overlap ? 2 * c : c;
  const std::int64_t first = p.has_previous ? m : 0;  // token of the arrays where block 0 begins
  pool.parallel_for(p.n_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t own = first + b * m;
      // A slot is a token and its half of the channels: the previous block's first half, then the own
      // block's second half. Without a previous block its slots do not exist (their gate is -inf).
      const bool previous = p.overlap && own >= m;
      const auto for_each_slot = [&](auto&& visit, std::int64_t channel) {
        if (previous) {
          for (std::int64_t t = own - m; t < own; ++t) visit(t * wide + channel);
        }
        for (std::int64_t t = own; t < own + m; ++t) visit(t * wide + (p.overlap ? c : 0) + channel);
      };
      for (std::int64_t i = 0; i < c; ++i) {
        float maximum = -std::numeric_limits<float>::infinity();
        for_each_slot([&](std::int64_t at) { maximum = std::max(maximum, p.gates[at]); }, i);
        double weighted = 0, total = 0;
        for_each_slot(
            [&](std::int64_t at) {
              const double e = std::exp(p.gates[at] - maximum);
              weighted += e * double{p.values[at]};
              total += e;
            },
            i);
        p.out[b * c + i] = static_cast<float>(weighted / total);
      }
    }
  });
}

// out = sum_s p_s k_s with p = softmax(g) over the slots s of a row, per channel:
//   d_k_s = p_s d_out;  d_g_s = p_s (k_s - out) d_out.
void compress_backward(const CompressBackwardParams& p, ThreadPool& pool) {
  const std::int64_t m = p.ratio, c = p.dim;
  const std::int64_t wide = p.overlap ? 2 * c : c;
  std::fill_n(p.d_values, p.n_tokens * wide, 0.0F);
  std::fill_n(p.d_gates, p.n_tokens * wide, 0.0F);
  pool.parallel_for(p.n_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> slots;  // of a channel, as places in the arrays
    std::vector<double> weights;
    for (std::int64_t b = begin; b < end; ++b) {
      for (std::int64_t i = 0; i < c; ++i) {
        slots.clear();
        if (p.overlap && b > 0) {
          for (std::int64_t t = (b - 1) * m; t < b * m; ++t) slots.push_back(t * wide + i);
        }
        for (std::int64_t t = b * m; t < (b + 1) * m; ++t)
          slots.push_back(t * wide + (p.overlap ? c : 0) + i);
        double maximum = -std::numeric_limits<double>::infinity(), total = 0, out = 0;
        for (const std::int64_t at : slots) maximum = std::max(maximum, double{p.gates[at]});
        weights.clear();
        for (const std::int64_t at : slots) {
          weights.push_back(std::exp(double{p.gates[at]} - maximum));
          total += weights.back();
        }
        for (std::size_t s = 0; s < slots.size(); ++s) {
          weights[s] /= total;
          out += weights[s] * double{p.values[slots[s]]};
        }
        const double d_out = p.d_out[b * c + i];
        for (std::size_t s = 0; s < slots.size(); ++s) {
          p.d_values[slots[s]] = static_cast<float>(weights[s] * d_out);
          p.d_gates[slots[s]] = static_cast<float>(weights[s] * (double{p.values[slots[s]]} - out) * d_out);
        }
      }
    }
  });
}

}  // namespace hadal::ref

namespace hadal {

void ReferenceBackend::compress_tokens(const CompressTokensParams& p) {
  const std::int64_t m = p.ratio, wide = (p.overlap ? 2 : 1) * p.dim;
  const auto grow = [](Buffer<float>& buffer, std::int64_t size) {
    if (static_cast<std::int64_t>(buffer.size()) < size)
      buffer = Buffer<float>::uninitialised(static_cast<std::size_t>(size));
    return buffer.data();
  };
  float* out = p.out;
  for (const CompressSegment& s : p.segments) {
    // The tail and the new tokens, one after another; `gates` with the position bias by place in the block.
    const std::int64_t kept = CompressSegment::kept(s.start, m, p.overlap), total = kept + s.count;
    float* values = grow(values_, total * wide);
    float* gates = grow(gates_, total * wide);
    std::copy_n(s.values, kept * wide, values);
    std::copy_n(s.gates, kept * wide, gates);
    std::copy_n(p.values + s.begin * wide, s.count * wide, values + kept * wide);
    for (std::int64_t i = 0; i < s.count; ++i) {
      const float* bias = p.bias + (s.start + i) % m * wide;
      const float* gate = p.gates + (s.begin + i) * wide;
      float* to = gates + (kept + i) * wide;
      for (std::int64_t c = 0; c < wide; ++c) to[c] = gate[c] + bias[c];
    }
    const std::int64_t first_block = s.start / m, n_blocks = (s.start + s.count) / m - first_block;
    run(CompressParams{n_blocks, m, p.dim, p.overlap, p.overlap && first_block > 0, values, gates, out});
    out += n_blocks * p.dim;

    const std::int64_t keep = CompressSegment::kept(s.start + s.count, m, p.overlap);
    std::copy_n(values + (total - keep) * wide, keep * wide, s.values);
    std::copy_n(gates + (total - keep) * wide, keep * wide, s.gates);
  }
}

}  // namespace hadal
