#include "train/attention_layer.h"

namespace hadal {

AttentionLayer::AttentionLayer(const Pass& pass, std::int64_t block, const AttentionWeights& w) : w_(w) {
  const Config& config = pass.config;
  const AttentionKind kind = config.attention_kind(block);
  const std::int64_t ratio = config.compress_ratio(block);
  shape_ = {pass.batch.size,
            pass.batch.length,
            config.num_attention_heads,
            config.head_dim,
            config.sliding_window,
            ratio,
            ratio == 0 ? 0 : pass.batch.length / ratio,
            config.index_topk,
            pass.options.precision == Precision::bf16};
  if (kind == AttentionKind::sliding) return;
  compressor_.emplace(w.compressor, ratio, config.head_dim, false);
  const ObjectiveOptions& options = pass.options;
  if (kind == AttentionKind::csa && (options.sparse || options.index_loss))
    indexer_.emplace(w.indexer, ratio, config.index_head_dim);
}

void AttentionLayer::forward(Pass& pass, const float* x, float* y) {
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), heads = shape_.heads, c = shape_.dim;
  x_ = x;
  qr_raw_ = pass.kept.take<float>(n * config.q_lora_rank);
  qr_ = pass.kept.take<float>(n * config.q_lora_rank);
  q_raw_ = pass.kept.take<float>(n * heads * c);
  q_ = pass.kept.take<float>(n * heads * c);
  kv_raw_ = pass.kept.take<float>(n * c);
  kv_ = pass.kept.take<float>(n * c);
  {
    Products products(pass);
    products.linear(w_.wq_a, x, n, qr_raw_);
    products.linear(w_.wkv, x, n, kv_raw_);
    if (compressed()) compressor_->start(pass, products, x);
  }
  pass.rms_norm(qr_raw_, &w_.q_norm, n, config.q_lora_rank, qr_);
  Products(pass).linear(w_.wq_b, qr_, n, q_raw_);
  pass.rms_norm(q_raw_, nullptr, n * heads, c, q_);
  pass.rope(compressed(), heads, c, false, q_);
  pass.rms_norm(kv_raw_, &w_.kv_norm, n, c, kv_);
  pass.rope(compressed(), 1, c, false, kv_);
  if (compressed()) rows_ = compressor_->finish(pass);
  if (indexer_) {
    indexer_->forward(pass, x, qr_);
    if (pass.options.sparse) selected_ = indexer_->select(pass, shape_);
  }

  o_ = pass.kept.take<float>(n * heads * c);
  {
    const Arena::Scope scope(pass.scratch);
    float* mass = indexer_ && pass.options.index_loss ? pass.scratch.take<float>(n * shape_.n_rows) : nullptr;
    pass.training.run(
        CausalAttentionParams{shape_, q_, kv_, rows_, selected_, w_.attn_sink.data(), o_, mass});
    if (mass != nullptr) indexer_->loss(pass, shape_, selected_, mass);
  }
  pass.rope(compressed(), heads, c, true, o_);

  // The heads of each group are projected together (wo_a), and all groups to d.
  const std::int64_t groups = config.o_groups, in = w_.wo_a.in, rank = w_.wo_a.out / groups;
  z_ = pass.kept.take<float>(n * w_.wo_a.out);
  {
    Products products(pass);
    for (std::int64_t g = 0; g < groups; ++g) {
      products.add({n, rank, in, o_ + g * in, groups * in, false, pass.values(w_.wo_a) + g * rank * in, in,
                    true, z_ + g * rank, w_.wo_a.out, false});
    }
  }
  Products(pass).linear(w_.wo_b, z_, n, y);
}

void AttentionLayer::backward(Pass& pass, const float* d_y, float* d_x) {
  const Arena::Scope scope(pass.scratch);
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), heads = shape_.heads, c = shape_.dim;
  float* d_z = pass.scratch.take<float>(n * w_.wo_a.out);
  float* d_o = pass.scratch.take<float>(n * heads * c);
  float* d_q = pass.scratch.take<float>(n * heads * c);
  float* d_qr = pass.scratch.take<float>(n * config.q_lora_rank);
  float* d_kv = pass.scratch.take<float>(n * c);
  float* d_rows = pass.scratch.take<float>(shape_.sequences * shape_.n_rows * c);
  {
    Products products(pass);
    products.input_gradient(w_.wo_b, d_y, n, d_z, false);
    products.weight_gradient(w_.wo_b, d_y, z_, n);
  }
  {
    const std::int64_t groups = config.o_groups, in = w_.wo_a.in, rank = w_.wo_a.out / groups;
    Products products(pass);
    for (std::int64_t g = 0; g < groups; ++g) {
      const float* w = pass.values(w_.wo_a) + g * rank * in;
      products.add({n, in, rank, d_z + g * rank, groups * rank, false, w, in, false, d_o + g * in,
                    groups * in, false});
      products.add({rank, in, n, d_z + g * rank, groups * rank, true, o_ + g * in, groups * in, false,
                    pass.gradient(w), in, true});
    }
  }
  // Back from the inverse rotation of the output, the gradient and the output itself.
  pass.rope(compressed(), heads, c, false, d_o);
  pass.rope(compressed(), heads, c, false, o_);
  pass.training.run(CausalAttentionBackwardParams{shape_, q_, kv_, rows_, selected_, w_.attn_sink.data(), o_,
                                                  d_o, d_q, d_kv, d_rows, pass.gradient(w_.attn_sink)});
  pass.rope(compressed(), heads, c, true, d_q);
  pass.rms_norm_backward(q_raw_, nullptr, n * heads, c, d_q);
  pass.rope(compressed(), 1, c, true, d_kv);
  pass.rms_norm_backward(kv_raw_, &w_.kv_norm, n, c, d_kv);
  {
    Products products(pass);
    products.input_gradient(w_.wq_b, d_q, n, d_qr, false);
    products.weight_gradient(w_.wq_b, d_q, qr_, n);
    products.input_gradient(w_.wkv, d_kv, n, d_x, false);
    products.weight_gradient(w_.wkv, d_kv, x_, n);
  }
  pass.rms_norm_backward(qr_raw_, &w_.q_norm, n, config.q_lora_rank, d_qr);
  {
    Products products(pass);
    products.input_gradient(w_.wq_a, d_qr, n, d_x, true);
    products.weight_gradient(w_.wq_a, d_qr, x_, n);
  }
  if (compressed()) compressor_->backward(pass, d_rows, d_x);
  backward_indexer(pass);
}

void AttentionLayer::backward_indexer(Pass& pass) {
  if (indexer_) indexer_->backward(pass, shape_);
}

}  // namespace hadal
