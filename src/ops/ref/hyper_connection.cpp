// mHC, manifold-constrained hyper-connections (report section 2.2; hc_pre, hc_post, hc_head and
// hc_split_sinkhorn in the official code).
#include <algorithm>
#include <array>
#include <cmath>

#include "ops/ref/ref.h"

namespace hadal::ref {
namespace {

float sigmoid(float x) {
  return 1.0F / (1.0F + std::exp(-x));
}

// 1 / sqrt(mean(v^2) + eps) over all streams of a token: fn was applied to the raw streams, and a norm
// without weights commutes with it.
float inverse_rms(const float* v, std::int64_t n, float eps) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double{v[i]} * double{v[i]};
  return 1.0F / std::sqrt(static_cast<float>(sum / static_cast<double>(n)) + eps);
}

// out = sum_i pre[i] * streams[i]
void read_streams(const float* streams, const float* pre, std::int64_t n, std::int64_t dim, float* out) {
  for (std::int64_t j = 0; j < dim; ++j) {
    float sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += pre[i] * streams[i * dim + j];
    out[j] = sum;
  }
}

}  // namespace

void hc_split_sinkhorn(const float* mix, const float* scale, const float* base, std::int64_t n,
                       std::int64_t iterations, float eps, float* pre, float* post, float* comb) {
  for (std::int64_t i = 0; i < n; ++i) pre[i] = sigmoid(mix[i] * scale[0] + base[i]) + eps;
  for (std::int64_t i = 0; i < n; ++i) post[i] = 2 * sigmoid(mix[n + i] * scale[1] + base[n + i]);
  for (std::int64_t at = 0; at < n * n; ++at) comb[at] = mix[2 * n + at] * scale[2] + base[2 * n + at];

  // Rows: softmax, + eps.
  for (std::int64_t j = 0; j < n; ++j) {
    float* row = comb + j * n;
    const float maximum = *std::max_element(row, row + n);
    float sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += row[i] = std::exp(row[i] - maximum);
    for (std::int64_t i = 0; i < n; ++i) row[i] = row[i] / sum + eps;
  }
  const auto normalise_columns = [&] {
    for (std::int64_t i = 0; i < n; ++i) {
      float sum = 0;
      for (std::int64_t j = 0; j < n; ++j) sum += comb[j * n + i];
      for (std::int64_t j = 0; j < n; ++j) comb[j * n + i] /= sum + eps;
    }
  };
  const auto normalise_rows = [&] {
    for (std::int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (std::int64_t i = 0; i < n; ++i) sum += comb[j * n + i];
      for (std::int64_t i = 0; i < n; ++i) comb[j * n + i] /= sum + eps;
    }
  };
  normalise_columns();
  for (std::int64_t iteration = 1; iteration < iterations; ++iteration) {
    normalise_rows();
    normalise_columns();
  }
}

void hc_pre(const HcPreParams& p, ThreadPool& pool) {
  const std::int64_t n = p.n, mixes = (2 + n) * n;
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::array<float, 18 * 16> mix{};
    for (std::int64_t t = begin; t < end; ++t) {
      const float* streams = p.streams + t * n * p.dim;
      const float inverse = inverse_rms(streams, n * p.dim, p.norm_eps);
      for (std::int64_t i = 0; i < mixes; ++i)
        mix[static_cast<std::size_t>(i)] = p.mix[t * mixes + i] * inverse;
      hc_split_sinkhorn(mix.data(), p.scale, p.base, n, p.sinkhorn_iters, p.hc_eps, p.pre + t * n,
                        p.post + t * n, p.comb + t * n * n);
      read_streams(streams, p.pre + t * n, n, p.dim, p.out + t * p.dim);
    }
  });
}

void hc_post(const HcPostParams& p, ThreadPool& pool) {
  const std::int64_t n = p.n;
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::array<float, 16> before{};
    for (std::int64_t t = begin; t < end; ++t) {
      const float* post = p.post + t * n;
      const float* comb = p.comb + t * n * n;
      float* streams = p.streams + t * n * p.dim;
      for (std::int64_t c = 0; c < p.dim; ++c) {
        for (std::int64_t j = 0; j < n; ++j) before[static_cast<std::size_t>(j)] = streams[j * p.dim + c];
        const float y = p.y[t * p.dim + c];
        for (std::int64_t i = 0; i < n; ++i) {
          float mixed = 0;
          for (std::int64_t j = 0; j < n; ++j) mixed += comb[j * n + i] * before[static_cast<std::size_t>(j)];
          streams[i * p.dim + c] = post[i] * y + mixed;
        }
      }
    }
  });
}

void hc_head(const HcHeadParams& p, ThreadPool& pool) {
  const std::int64_t n = p.n;
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::array<float, 16> pre{};
    for (std::int64_t t = begin; t < end; ++t) {
      const float* streams = p.streams + t * n * p.dim;
      const float inverse = inverse_rms(streams, n * p.dim, p.norm_eps);
      for (std::int64_t i = 0; i < n; ++i) {
        pre[static_cast<std::size_t>(i)] =
            sigmoid(p.mix[t * n + i] * inverse * p.scale[0] + p.base[i]) + p.hc_eps;
      }
      read_streams(streams, pre.data(), n, p.dim, p.out + t * p.dim);
    }
  });
}

}  // namespace hadal::ref
