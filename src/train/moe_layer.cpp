#include "train/moe_layer.h"

#include <algorithm>
#include <numeric>

namespace hadal {

const float* MoeLayer::routed(const Pass& pass, const Linear& w) const {
  const float* values = pass.values(w);
  return pass.quantised == nullptr ? values : pass.quantised + (values - pass.weights.values().data());
}

void MoeLayer::route(Pass& pass, const float* x) {
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), experts = config.n_routed_experts, k = config.num_experts_per_tok;
  logits_ = pass.kept.take<float>(n * experts);
  scores_ = pass.kept.take<float>(n * experts);
  indices_ = pass.kept.take<std::int32_t>(n * k);
  weights_ = pass.kept.take<float>(n * k);
  Products(pass).linear(w_.gate, x, n, logits_);

  GateParams gate{n,       experts,  k,           logits_,
                  nullptr, nullptr,  pass.tokens, static_cast<float>(config.routed_scaling_factor),
                  scores_, indices_, weights_};
  const Arena::Scope scope(pass.scratch);
  if (!w_.tid2eid.values.empty()) {
    gate.table = w_.tid2eid.values.data();
  } else if (!pass.batch.routing.empty()) {
    // Chosen by other weights: a table with a row for every token of the batch.
    auto* rows = pass.scratch.take<std::int32_t>(n);
    std::iota(rows, rows + n, 0);
    gate.table = pass.batch.routing.data() + block_ * n * k;
    gate.tokens = {rows, static_cast<std::size_t>(n)};
  } else {
    gate.bias = w_.bias.data();
  }
  pass.backend.run(gate);
  std::copy_n(indices_, n * k, pass.routing.data() + block_ * n * k);
}

// sum_i f_i P_i per sequence: f_i = E / (k T) * tokens that chose i, P_i = mean share of i. f has no
// gradient.
void MoeLayer::balance(Pass& pass) {
  if (!w_.tid2eid.values.empty()) return;  // a table has nothing to balance
  const std::int64_t experts = pass.config.n_routed_experts, k = pass.config.num_experts_per_tok;
  const std::int64_t sequences = pass.batch.size, length = pass.batch.length;
  d_shares_ = pass.kept.take<float>(sequences * experts);
  std::vector<double> share(static_cast<std::size_t>(experts)), chosen(share.size());
  for (std::int64_t b = 0; b < sequences; ++b) {
    std::fill(share.begin(), share.end(), 0.0);
    std::fill(chosen.begin(), chosen.end(), 0.0);
    for (std::int64_t t = b * length; t < (b + 1) * length; ++t) {
      const float* scores = scores_ + t * experts;
      double all = 0;
      for (std::int64_t e = 0; e < experts; ++e) all += double{scores[e]};
      for (std::int64_t e = 0; e < experts; ++e)
        share[static_cast<std::size_t>(e)] += double{scores[e]} / all;
      for (std::int64_t i = 0; i < k; ++i) chosen[static_cast<std::size_t>(indices_[t * k + i])] += 1;
    }
    const auto tokens = static_cast<double>(length);
    const double all_sequences = static_cast<double>(sequences);
    for (std::size_t e = 0; e < share.size(); ++e) {
      const double f = static_cast<double>(experts) / (static_cast<double>(k) * tokens) * chosen[e];
      pass.balance += f * share[e] / tokens / all_sequences;
      d_shares_[b * experts + static_cast<std::int64_t>(e)] = static_cast<float>(
          double{pass.scale} * double{pass.options.balance_weight} * f / tokens / all_sequences);
    }
  }
}

void MoeLayer::forward(Pass& pass, const float* x, float* y) {
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), d = config.hidden_size, inter = config.moe_intermediate_size;
  const Arena::Scope scope(pass.scratch);
  x_ = x;
  route(pass, x);
  dispatch_.plan(pass, indices_);
  for (std::int64_t e = 0; e < config.n_routed_experts; ++e)
    pass.expert_load[static_cast<std::size_t>(block_ * config.n_routed_experts + e)] = dispatch_.load(e);
  balance(pass);

  const std::int64_t rows = dispatch_.rows();
  rows_x_ = dispatch_.send(pass, x, pass.kept);
  row_weights_ = dispatch_.send_weights(pass, weights_, pass.kept);
  for (Middle* middle : {&routed_, &shared_}) {
    const std::int64_t size = (middle == &routed_ ? rows : n) * inter;
    middle->gate = pass.kept.take<float>(size);
    middle->up = pass.kept.take<float>(size);
    middle->hidden = pass.kept.take<float>(size);
  }
  {
    Products products(pass);
    dispatch_.for_each_expert([&](std::size_t e, std::int64_t first, std::int64_t count) {
      const Expert& w = w_.experts[e];
      products.linear(routed(pass, w.w1), inter, d, rows_x_ + first * d, count, routed_.gate + first * inter);
      products.linear(routed(pass, w.w3), inter, d, rows_x_ + first * d, count, routed_.up + first * inter);
    });
    products.linear(w_.shared.w1, x, n, shared_.gate);
    products.linear(w_.shared.w3, x, n, shared_.up);
  }
  const auto limit = static_cast<float>(config.swiglu_limit);
  pass.training.run(SwigluParams{rows, inter, routed_.gate, routed_.up, row_weights_, limit, routed_.hidden});
  pass.training.run(SwigluParams{n, inter, shared_.gate, shared_.up, nullptr, limit, shared_.hidden});
  float* rows_y = pass.scratch.take<float>(rows * d);
  {
    Products products(pass);
    dispatch_.for_each_expert([&](std::size_t e, std::int64_t first, std::int64_t count) {
      products.linear(routed(pass, w_.experts[e].w2), d, inter, routed_.hidden + first * inter, count,
                      rows_y + first * d);
    });
    products.linear(w_.shared.w2, shared_.hidden, n, y);
  }
  dispatch_.combine(pass, rows_y, y);
}

void MoeLayer::backward(Pass& pass, const float* d_y, float* d_x) {
  const Arena::Scope scope(pass.scratch);
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), d = config.hidden_size, inter = config.moe_intermediate_size;
  const std::int64_t rows = dispatch_.rows();
  float* d_rows_y = dispatch_.send(pass, d_y, pass.scratch);
  float* d_hidden = pass.scratch.take<float>(rows * inter);
  float* d_shared_hidden = pass.scratch.take<float>(n * inter);
  {
    Products products(pass);
    dispatch_.for_each_expert([&](std::size_t e, std::int64_t first, std::int64_t count) {
      products.input_gradient(routed(pass, w_.experts[e].w2), d, inter, d_rows_y + first * d, count,
                              d_hidden + first * inter, false);
    });
    products.input_gradient(w_.shared.w2, d_y, n, d_shared_hidden, false);
    products.weight_gradient(w_.shared.w2, d_y, shared_.hidden, n);
    expert_gradients(products, pass, &Expert::w2, d_rows_y, routed_.hidden);
  }

  // The gradients of gate and up take the places of gate and up.
  float* d_row_weights = pass.scratch.take<float>(rows);
  const auto limit = static_cast<float>(config.swiglu_limit);
  pass.training.run(SwigluBackwardParams{rows, inter, routed_.gate, routed_.up, row_weights_, limit, d_hidden,
                                         routed_.gate, routed_.up, d_row_weights});
  pass.training.run(SwigluBackwardParams{n, inter, shared_.gate, shared_.up, nullptr, limit, d_shared_hidden,
                                         shared_.gate, shared_.up, nullptr});
  float* d_rows_x = d_rows_y;  // which has been read
  {
    Products products(pass);
    dispatch_.for_each_expert([&](std::size_t e, std::int64_t first, std::int64_t count) {
      products.input_gradient(routed(pass, w_.experts[e].w1), inter, d, routed_.gate + first * inter, count,
                              d_rows_x + first * d, false);
    });
    products.input_gradient(w_.shared.w1, shared_.gate, n, d_x, false);
    products.weight_gradient(w_.shared.w1, shared_.gate, x_, n);
    products.weight_gradient(w_.shared.w3, shared_.up, x_, n);
    expert_gradients(products, pass, &Expert::w1, routed_.gate, rows_x_);
  }
  {
    Products products(pass);
    dispatch_.for_each_expert([&](std::size_t e, std::int64_t first, std::int64_t count) {
      products.input_gradient(routed(pass, w_.experts[e].w3), inter, d, routed_.up + first * inter, count,
                              d_rows_x + first * d, true);
    });
    products.input_gradient(w_.shared.w3, shared_.up, n, d_x, true);
    expert_gradients(products, pass, &Expert::w3, routed_.up, rows_x_);
  }
  dispatch_.combine(pass, d_rows_x, d_x);

  const std::int64_t experts = config.n_routed_experts, k = config.num_experts_per_tok;
  float* d_weights = pass.scratch.take<float>(n * k);
  dispatch_.return_weights(pass, d_row_weights, d_weights);
  float* d_logits = pass.scratch.take<float>(n * experts);
  pass.training.run(GateBackwardParams{n, experts, k, pass.batch.length, logits_, scores_, indices_,
                                       static_cast<float>(config.routed_scaling_factor), d_weights, d_shares_,
                                       d_logits});
  Products products(pass);
  products.weight_gradient(w_.gate, d_logits, x_, n);
  products.input_gradient(w_.gate, d_logits, n, d_x, true);
}

// Of spread experts the rows of each source are summed for themselves, one source behind the other: the sums
// of one process that takes these batches in turn (batch_runner.h).
void MoeLayer::expert_gradients(Products& products, const Pass& pass, Linear Expert::*matrix,
                                const float* d_out, const float* in) const {
  for (int source = 0; source < dispatch_.sources(); ++source) {
    if (source > 0) products.run();
    dispatch_.for_each_expert_of(source, [&](std::size_t e, std::int64_t first, std::int64_t count) {
      const Linear& w = w_.experts[e].*matrix;
      products.weight_gradient(pass.expert_gradient(w), w.out, w.in, d_out + first * w.out, in + first * w.in,
                               count);
    });
  }
}

}  // namespace hadal
