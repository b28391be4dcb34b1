// The gradients of mHC (docs/training.md, "Backward").
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "ops/ref/ref.h"

namespace hadal::ref {
namespace {

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// The Sinkhorn iterations on an n x n matrix, each step kept for the way back.
class Sinkhorn {
 public:
  Sinkhorn(std::int64_t n, std::int64_t iterations, double eps) : n_(n), steps_(2 * iterations), eps_(eps) {
    values_.resize(static_cast<std::size_t>((steps_ + 1) * n * n));
    divisors_.resize(static_cast<std::size_t>(steps_ * n));
  }

  // Step 0 is the softmax of each row, + eps; odd steps divide the columns by their sum + eps, even ones the
  // rows.
  const double* forward(const double* logits) {
    for (std::int64_t j = 0; j < n_; ++j) {
      const double* in = logits + j * n_;
      const double maximum = *std::max_element(in, in + n_);
      double sum = 0;
      for (std::int64_t i = 0; i < n_; ++i) sum += std::exp(in[i] - maximum);
      for (std::int64_t i = 0; i < n_; ++i) step(0)[j * n_ + i] = std::exp(in[i] - maximum) / sum + eps_;
    }
    for (std::int64_t s = 1; s < steps_; ++s) {
      const double* x = step(s - 1);
      double* y = step(s);
      for (std::int64_t line = 0; line < n_; ++line) {
        double sum = eps_;
        for (std::int64_t i = 0; i < n_; ++i) sum += x[at(s, line, i)];
        divisor(s, line) = sum;
        for (std::int64_t i = 0; i < n_; ++i) y[at(s, line, i)] = x[at(s, line, i)] / sum;
      }
    }
    return step(steps_ - 1);
  }

  // d: of the result, then of the logits. A step y_i = x_i / (sum x + eps) along a line has
  //   d_x_i = (d_y_i - sum_k d_y_k y_k) / (sum x + eps).
  void backward(double* d) {
    for (std::int64_t s = steps_ - 1; s > 0; --s) {
      const double* y = step(s);
      for (std::int64_t line = 0; line < n_; ++line) {
        double dot = 0;
        for (std::int64_t i = 0; i < n_; ++i) dot += d[at(s, line, i)] * y[at(s, line, i)];
        for (std::int64_t i = 0; i < n_; ++i) {
          double& value = d[at(s, line, i)];
          value = (value - dot) / divisor(s, line);
        }
      }
    }
    for (std::int64_t j = 0; j < n_; ++j) {
      double dot = 0;
      for (std::int64_t i = 0; i < n_; ++i) dot += d[j * n_ + i] * (step(0)[j * n_ + i] - eps_);
      for (std::int64_t i = 0; i < n_; ++i)
        d[j * n_ + i] = (step(0)[j * n_ + i] - eps_) * (d[j * n_ + i] - dot);
    }
  }

 private:
  double* step(std::int64_t s) { return values_.data() + s * n_ * n_; }
  double& divisor(std::int64_t s, std::int64_t line) {
    return divisors_[static_cast<std::size_t>(s * n_ + line)];
  }
  // Place of entry i of a line of step s: of a column if s is odd, else of a row.
  std::int64_t at(std::int64_t s, std::int64_t line, std::int64_t i) const {
    return s % 2 == 1 ? i * n_ + line : line * n_ + i;
  }

  std::int64_t n_, steps_;
  double eps_;
  std::vector<double> values_;    // [steps][n, n]
  std::vector<double> divisors_;  // [steps][n]
};

// s = (mean v^2 + eps)^-1/2 over all streams of a token.
double inverse_rms(const float* v, std::int64_t n, double eps) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double{v[i]} * double{v[i]};
  return 1 / std::sqrt(sum / static_cast<double>(n) + eps);
}

double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

// The normalised mixes are u = s * mix. From d_u: d_mix = s d_u, and d_streams += -s^3 / (n d) (d_u . mix) v.
// Returns the factor of v.
double unnormalise(const double* d_u, const float* mix, std::int64_t mixes, double s, std::int64_t width,
                   float* d_mix) {
  double along = 0;
  for (std::int64_t i = 0; i < mixes; ++i) {
    along += d_u[i] * double{mix[i]};
    d_mix[i] = static_cast<float>(d_u[i] * s);
  }
  return -s * s * s * along / static_cast<double>(width);
}

}  // namespace

void hc_pre_backward(const HcPreBackwardParams& p, ThreadPool& pool) {
  const std::int64_t n = p.n, mixes = (2 + n) * n, width = n * p.dim;
  // Of each token: the gradient of what scale and base made (their part of z = u * scale + base), and of the
  // three scales.
  const std::int64_t parts = mixes + 3;
  std::vector<double> d_parameters(static_cast<std::size_t>(p.n_tokens * parts));
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> u(static_cast<std::size_t>(mixes)), z(u.size()), d_u(u.size());
    Sinkhorn sinkhorn(n, p.sinkhorn_iters, p.hc_eps);
    for (std::int64_t t = begin; t < end; ++t) {
      const float* streams = p.streams + t * width;
      const float* d_out = p.d_out + t * p.dim;
      const double s = inverse_rms(streams, width, p.norm_eps);
      const auto scale_of = [&](std::int64_t i) { return i < n ? 0 : i < 2 * n ? 1 : 2; };
      for (std::int64_t i = 0; i < mixes; ++i) {
        const auto at = static_cast<std::size_t>(i);
        u[at] = double{p.mix[t * mixes + i]} * s;
        z[at] = u[at] * double{p.scale[scale_of(i)]} + double{p.base[i]};
      }
      double* d_z = d_parameters.data() + t * parts;
      for (std::int64_t i = 0; i < n; ++i) {  // pre = sigmoid(z) + eps weighs stream i
        const double sigma = sigmoid(z[static_cast<std::size_t>(i)]);
        d_z[i] = dot(d_out, streams + i * p.dim, p.dim) * sigma * (1 - sigma);
      }
      for (std::int64_t i = 0; i < n; ++i) {  // post = 2 sigmoid(z)
        const double sigma = sigmoid(z[static_cast<std::size_t>(n + i)]);
        d_z[n + i] = double{p.d_post[t * n + i]} * 2 * sigma * (1 - sigma);
      }
      sinkhorn.forward(z.data() + 2 * n);
      for (std::int64_t i = 0; i < n * n; ++i) d_z[2 * n + i] = p.d_comb[t * n * n + i];
      sinkhorn.backward(d_z + 2 * n);

      for (std::int64_t i = 0; i < mixes; ++i) {
        const auto at = static_cast<std::size_t>(i);
        d_z[mixes + scale_of(i)] += d_z[i] * u[at];
        d_u[at] = d_z[i] * double{p.scale[scale_of(i)]};
      }
      const double factor = unnormalise(d_u.data(), p.mix + t * mixes, mixes, s, width, p.d_mix + t * mixes);
      for (std::int64_t i = 0; i < n; ++i) {
        const double pre = sigmoid(z[static_cast<std::size_t>(i)]) + double{p.hc_eps};
        for (std::int64_t c = 0; c < p.dim; ++c) {
          const std::int64_t at = i * p.dim + c;
          float& d_stream = p.d_streams[t * width + at];
          d_stream =
              static_cast<float>(double{d_stream} + pre * double{d_out[c]} + factor * double{streams[at]});
        }
      }
    }
  });
  for (std::int64_t i = 0; i < parts; ++i) {
    double sum = 0;
    for (std::int64_t t = 0; t < p.n_tokens; ++t)
      sum += d_parameters[static_cast<std::size_t>(t * parts + i)];
    (i < mixes ? p.d_base[i] : p.d_scale[i - mixes]) += static_cast<float>(sum);
  }
}

// From out[i] = post[i] y + sum_j comb[j][i] x[j].
void hc_post_backward(const HcPostBackwardParams& p, ThreadPool& pool) {
  const std::int64_t n = p.n, width = n * p.dim;
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::array<double, 16> after{};
    for (std::int64_t t = begin; t < end; ++t) {
      const float* y = p.y + t * p.dim;
      const float* streams = p.streams + t * width;
      const float* post = p.post + t * n;
      const float* comb = p.comb + t * n * n;
      float* d_streams = p.d_streams + t * width;
      for (std::int64_t i = 0; i < n; ++i) {
        p.d_post[t * n + i] = static_cast<float>(dot(d_streams + i * p.dim, y, p.dim));
        for (std::int64_t j = 0; j < n; ++j) {
          p.d_comb[(t * n + j) * n + i] =
              static_cast<float>(dot(d_streams + i * p.dim, streams + j * p.dim, p.dim));
        }
      }
      for (std::int64_t c = 0; c < p.dim; ++c) {
        double d_y = 0;
        for (std::int64_t i = 0; i < n; ++i) {
          after[static_cast<std::size_t>(i)] = d_streams[i * p.dim + c];
          d_y += double{post[i]} * after[static_cast<std::size_t>(i)];
        }
        p.d_y[t * p.dim + c] = static_cast<float>(d_y);
        for (std::int64_t j = 0; j < n; ++j) {
          double before = 0;
          for (std::int64_t i = 0; i < n; ++i)
            before += double{comb[j * n + i]} * after[static_cast<std::size_t>(i)];
          d_streams[j * p.dim + c] = static_cast<float>(before);
        }
      }
    }
  });
}

void hc_head_backward(const HcHeadBackwardParams& p, ThreadPool& pool) {
  const std::int64_t n = p.n, width = n * p.dim, parts = n + 1;
  std::vector<double> d_parameters(static_cast<std::size_t>(p.n_tokens * parts));
  pool.parallel_for(p.n_tokens, 1, [&](std::int64_t begin, std::int64_t end) {
    std::array<double, 16> pre{}, d_u{};
    for (std::int64_t t = begin; t < end; ++t) {
      const float* streams = p.streams + t * width;
      const float* d_out = p.d_out + t * p.dim;
      const double s = inverse_rms(streams, width, p.norm_eps);
      double* d_z = d_parameters.data() + t * parts;
      for (std::int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double u = double{p.mix[t * n + i]} * s;
        const double sigma = sigmoid(u * double{p.scale[0]} + double{p.base[i]});
        pre[at] = sigma + double{p.hc_eps};
        d_z[i] = dot(d_out, streams + i * p.dim, p.dim) * sigma * (1 - sigma);
        d_z[n] += d_z[i] * u;
        d_u[at] = d_z[i] * double{p.scale[0]};
      }
      const double factor = unnormalise(d_u.data(), p.mix + t * n, n, s, width, p.d_mix + t * n);
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t c = 0; c < p.dim; ++c) {
          const std::int64_t at = i * p.dim + c;
          p.d_streams[t * width + at] = static_cast<float>(
              pre[static_cast<std::size_t>(i)] * double{d_out[c]} + factor * double{streams[at]});
        }
      }
    }
  });
  for (std::int64_t i = 0; i < parts; ++i) {
    double sum = 0;
    for (std::int64_t t = 0; t < p.n_tokens; ++t)
      sum += d_parameters[static_cast<std::size_t>(t * parts + i)];
    (i < n ? p.d_base[i] : p.d_scale[0]) += static_cast<float>(sum);
  }
}

}  // namespace hadal::ref
