#include "train/indexer_layer.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace hadal {
namespace {

// What the weights are multiplied with: dim^-1/2 heads^-1/2.
float weight_scale(const Config& config) {
  return static_cast<float>(1 / (std::sqrt(static_cast<double>(config.index_head_dim)) *
                                 std::sqrt(static_cast<double>(config.index_n_heads))));
}

void multiply(float* x, std::int64_t n, float factor) {
  for (std::int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// One sequence's rows as the ops of inference see them: a single page.
class SinglePage {
 public:
  SinglePage(const float* rows, std::int64_t n_rows, std::int64_t dim)
      : page_(reinterpret_cast<const std::byte*>(rows)),
        rows_{&page_, 0, std::max<std::int64_t>(1, n_rows), {RowFormat::f32, dim, 0}} {}
  SinglePage(const SinglePage&) = delete;
  SinglePage& operator=(const SinglePage&) = delete;
  const PagedRows& rows() const { return rows_; }

 private:
  const std::byte* page_;
  PagedRows rows_;
};

std::vector<std::int64_t> visible_rows(const CausalAttentionShape& shape) {
  std::vector<std::int64_t> visible(static_cast<std::size_t>(shape.length));
  for (std::size_t t = 0; t < visible.size(); ++t) visible[t] = shape.visible(static_cast<std::int64_t>(t));
  return visible;
}

}  // namespace

void IndexerLayer::forward(Pass& pass, const float* x, const float* qr) {
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), heads = config.index_n_heads, dim = config.index_head_dim;
  x_ = x;
  qr_ = qr;
  q_ = pass.kept.take<float>(n * heads * dim);
  weights_ = pass.kept.take<float>(n * heads);
  {
    Products products(pass);
    compressor_.start(pass, products, x);
    products.linear(w_.wq_b, qr, n, q_);
    products.linear(w_.weights_proj, x, n, weights_);
  }
  rows_ = compressor_.finish(pass);
  pass.rope(true, heads, dim, false, q_);
  pass.backend.run(HadamardParams{n * heads, dim, q_});
  if (pass.options.fp4)
    pass.backend.run(QuantiseParams{QuantiseParams::Format::e2m1_32, n * heads, dim, dim, q_});
  multiply(weights_, n * heads, weight_scale(config));
}

const std::int32_t* IndexerLayer::select(Pass& pass, const CausalAttentionShape& shape) {
  const Config& config = pass.config;
  const std::int64_t heads = config.index_n_heads, dim = config.index_head_dim, k = config.index_topk;
  if (shape.n_rows <= k) return nullptr;
  auto* selected = pass.kept.take<std::int32_t>(pass.n() * k);
  const std::vector<std::int64_t> visible = visible_rows(shape);
  for (std::int64_t b = 0; b < shape.sequences; ++b) {
    const SinglePage page(rows_ + b * shape.n_rows * dim, shape.n_rows, dim);
    const std::int64_t at = b * shape.length;
    pass.backend.run(IndexSelectParams{shape.length, heads, dim, k, q_ + at * heads * dim,
                                       weights_ + at * heads, page.rows(), visible, selected + at * k});
  }
  return selected;
}

void IndexerLayer::loss(Pass& pass, const CausalAttentionShape& shape, const std::int32_t* selected,
                        const float* mass) {
  const Arena::Scope scope(pass.scratch);
  const std::int64_t n = pass.n();
  CausalAttentionShape own = shape;
  own.heads = pass.config.index_n_heads;
  own.dim = pass.config.index_head_dim;
  float* scores = pass.scratch.take<float>(n * shape.n_rows);
  pass.training.run(CausalIndexScoresParams{own, q_, weights_, rows_, scores});
  // Queries before the end of the first block see no row.
  const std::int64_t queries = shape.sequences * std::max<std::int64_t>(0, shape.length - shape.ratio + 1);
  if (queries == 0) return;
  float* losses = pass.scratch.take<float>(n);
  if (pass.wants_gradients()) d_scores_ = pass.kept.take<float>(n * shape.n_rows);
  pass.training.run(IndexLossParams{shape, selected, mass, scores,
                                    pass.scale * pass.options.index_weight / static_cast<float>(queries),
                                    losses, d_scores_});
  double sum = 0;
  for (std::int64_t t = 0; t < n; ++t) sum += double{losses[t]};
  pass.index_kl += sum / static_cast<double>(queries);
}

void IndexerLayer::backward(Pass& pass, const CausalAttentionShape& shape) {
  if (d_scores_ == nullptr) return;  // no row to be seen
  const Arena::Scope scope(pass.scratch);
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), heads = config.index_n_heads, dim = config.index_head_dim;
  CausalAttentionShape own = shape;
  own.heads = heads;
  own.dim = dim;
  float* d_q = pass.scratch.take<float>(n * heads * dim);
  float* d_weights = pass.scratch.take<float>(n * heads);
  float* d_rows = pass.scratch.take<float>(shape.sequences * shape.n_rows * dim);
  pass.training.run(
      CausalIndexScoresBackwardParams{own, q_, weights_, rows_, d_scores_, d_q, d_weights, d_rows});
  multiply(d_weights, n * heads, weight_scale(config));
  pass.backend.run(HadamardParams{n * heads, dim, d_q});
  pass.rope(true, heads, dim, true, d_q);
  {
    Products products(pass);
    products.weight_gradient(w_.wq_b, d_q, qr_, n);
    products.weight_gradient(w_.weights_proj, d_weights, x_, n);
  }
  compressor_.backward(pass, d_rows, nullptr);
}

}  // namespace hadal
