#include "train/pass.h"

#include <algorithm>

namespace hadal {

void Pass::rms_norm(const float* x, const Vector* w, std::int64_t rows, std::int64_t dim, float* out) const {
  backend.run(RmsNormParams{rows, dim, x, w != nullptr ? w->data() : nullptr, eps(), out});
}

void Pass::rms_norm_backward(const float* x, const Vector* w, std::int64_t rows, std::int64_t dim,
                             float* d) const {
  training.run(RmsNormBackwardParams{rows, dim, x, w != nullptr ? w->data() : nullptr, eps(), d, d,
                                     w != nullptr ? gradient(*w) : nullptr});
}

void Pass::rope(bool compressed, std::int64_t heads, std::int64_t dim, bool inverse, float* x) const {
  backend.run(RopeParams{n(), heads, dim, config.qk_rope_head_dim, compressed ? compress_cos : sliding_cos,
                         compressed ? compress_sin : sliding_sin, inverse, x});
}

void Pass::add(const float* from, std::int64_t count, float* to) const {
  pool.parallel_for(count, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

void Products::linear(const float* w, std::int64_t out, std::int64_t in, const float* x, std::int64_t rows,
                      float* y) {
  pending_.push_back({rows, out, in, x, in, false, w, in, true, y, out, false});
}

void Products::input_gradient(const float* w, std::int64_t out, std::int64_t in, const float* d_y,
                              std::int64_t rows, float* d_x, bool accumulate) {
  pending_.push_back({rows, in, out, d_y, out, false, w, in, false, d_x, in, accumulate});
}

void Products::weight_gradient(float* d_w, std::int64_t out, std::int64_t in, const float* d_y,
                               const float* x, std::int64_t rows) {
  pending_.push_back({out, in, rows, d_y, out, true, x, in, false, d_w, in, true});
}

void Products::run() {
  if (!pending_.empty()) pass_.matmul.run(pending_, pass_.options.precision);
  pending_.clear();
}

}  // namespace hadal
