#include "train/compressor_layer.h"

#include <algorithm>

namespace hadal {

void CompressorLayer::start(Pass& pass, Products& products, const float* x) {
  x_ = x;
  values_ = pass.kept.take<float>(pass.n() * wide());
  gates_ = pass.kept.take<float>(pass.n() * wide());
  products.linear(w_.wkv, x, pass.n(), values_);
  products.linear(w_.wgate, x, pass.n(), gates_);
}

const float* CompressorLayer::finish(Pass& pass) {
  const std::int64_t n_rows = rows(pass), length = pass.batch.length, all = pass.batch.size * n_rows;
  pass.pool.parallel_for(pass.n(), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* bias = w_.ape.data() + t % length % ratio_ * wide();
      float* gate = gates_ + t * wide();
      for (std::int64_t c = 0; c < wide(); ++c) gate[c] += bias[c];
    }
  });
  pooled_ = pass.kept.take<float>(all * dim_);
  for (std::int64_t b = 0; b < pass.batch.size; ++b) {
    pass.backend.run(CompressParams{n_rows, ratio_, dim_, overlap(), false, values_ + b * length * wide(),
                                    gates_ + b * length * wide(), pooled_ + b * n_rows * dim_});
  }
  float* out = pass.kept.take<float>(all * dim_);
  pass.rms_norm(pooled_, &w_.norm, all, dim_, out);
  rope(pass, false, out);
  if (rotate_) {
    pass.backend.run(HadamardParams{all, dim_, out});
    if (pass.options.fp4)
      pass.backend.run(QuantiseParams{QuantiseParams::Format::e2m1_32, all, dim_, dim_, out});
  }
  return out;
}

void CompressorLayer::backward(Pass& pass, float* d_rows, float* d_x) {
  const Arena::Scope scope(pass.scratch);
  const std::int64_t n_rows = rows(pass), length = pass.batch.length, all = pass.batch.size * n_rows;
  if (rotate_) pass.backend.run(HadamardParams{all, dim_, d_rows});  // FP4 passes the gradient as it is
  rope(pass, true, d_rows);
  pass.rms_norm_backward(pooled_, &w_.norm, all, dim_, d_rows);

  float* d_values = pass.scratch.take<float>(pass.n() * wide());
  float* d_gates = pass.scratch.take<float>(pass.n() * wide());
  for (std::int64_t b = 0; b < pass.batch.size; ++b) {
    const std::int64_t at = b * length * wide();
    pass.training.run(CompressBackwardParams{length, n_rows, ratio_, dim_, overlap(), values_ + at,
                                             gates_ + at, d_rows + b * n_rows * dim_, d_values + at,
                                             d_gates + at});
  }
  // The bias of a place in the block gathers from the tokens of that place.
  float* d_ape = pass.gradient(w_.ape);
  pass.pool.parallel_for(ratio_, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = 0; t < pass.n(); ++t) {
      const std::int64_t place = t % length % ratio_;
      if (place < begin || place >= end) continue;
      for (std::int64_t c = 0; c < wide(); ++c) d_ape[place * wide() + c] += d_gates[t * wide() + c];
    }
  });
  Products products(pass);
  products.weight_gradient(w_.wkv, d_values, x_, pass.n());
  products.weight_gradient(w_.wgate, d_gates, x_, pass.n());
  if (d_x == nullptr) return;
  products.input_gradient(w_.wkv, d_values, pass.n(), d_x, true);
  products.run();
  products.input_gradient(w_.wgate, d_gates, pass.n(), d_x, true);
}

// A row sits at the position of its block's first token.
void CompressorLayer::rope(const Pass& pass, bool inverse, float* rows_of_all) const {
  const Arena::Scope scope(pass.scratch);
  const std::int64_t half = pass.config.qk_rope_head_dim / 2, n_rows = rows(pass);
  float* cos = pass.scratch.take<float>(pass.batch.size * n_rows * half);
  float* sin = pass.scratch.take<float>(pass.batch.size * n_rows * half);
  for (std::int64_t row = 0; row < pass.batch.size * n_rows; ++row) {
    const std::int64_t token = row % n_rows * ratio_;
    std::copy_n(pass.compress_cos + token * half, half, cos + row * half);
    std::copy_n(pass.compress_sin + token * half, half, sin + row * half);
  }
  pass.backend.run(RopeParams{pass.batch.size * n_rows, 1, dim_, pass.config.qk_rope_head_dim, cos, sin,
                              inverse, rows_of_all});
}

}  // namespace hadal
