#include "train/moe_layer.h"

#include <algorithm>
#include <numeric>

namespace hadal {
namespace {

// rows[slot] = x[token_of[slot]]
void gather(const Pass& pass, const float* x, const std::int32_t* token_of, std::int64_t slots, float* rows) {
  const std::int64_t d = pass.config.hidden_size;
  pass.pool.parallel_for(slots, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) std::copy_n(x + token_of[s] * d, d, rows + s * d);
  });
}

// out[t] (+)= sum over the slots of t, ascending, of rows[slot]
void scatter_sum(const Pass& pass, const float* rows, const std::int32_t* slots_of, float* out) {
  const std::int64_t d = pass.config.hidden_size, k = pass.config.num_experts_per_tok;
  pass.pool.parallel_for(pass.n(), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t i = 0; i < k; ++i) {
        const float* row = rows + slots_of[t * k + i] * d;
        float* to = out + t * d;
        for (std::int64_t c = 0; c < d; ++c) to[c] += row[c];
      }
    }
  });
}

}  // namespace

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

void MoeLayer::assign_slots(Pass& pass) {
  const std::int64_t n = pass.n(), experts = pass.config.n_routed_experts,
                     k = pass.config.num_experts_per_tok;
  token_of_ = pass.kept.take<std::int32_t>(n * k);
  choice_of_ = pass.kept.take<std::int32_t>(n * k);
  slots_of_ = pass.kept.take<std::int32_t>(n * k);
  first_slot_.assign(static_cast<std::size_t>(experts + 1), 0);
  for (std::int64_t i = 0; i < n * k; ++i) ++first_slot_[static_cast<std::size_t>(indices_[i]) + 1];
  for (std::int64_t e = 0; e < experts; ++e)
    pass.expert_load[static_cast<std::size_t>(block_ * experts + e)] =
        first_slot_[static_cast<std::size_t>(e + 1)];
  std::partial_sum(first_slot_.begin(), first_slot_.end(), first_slot_.begin());
  std::vector<std::int64_t> next(first_slot_.begin(), first_slot_.end() - 1);
  for (std::int64_t i = 0; i < n * k; ++i) {
    const std::int64_t slot = next[static_cast<std::size_t>(indices_[i])]++;
    token_of_[slot] = static_cast<std::int32_t>(i / k);
    choice_of_[slot] = static_cast<std::int32_t>(i);
    slots_of_[i] = static_cast<std::int32_t>(slot);
  }
  for (std::int64_t t = 0; t < n; ++t) std::sort(slots_of_ + t * k, slots_of_ + (t + 1) * k);
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
  const std::int64_t slots = n * config.num_experts_per_tok;
  x_ = x;
  route(pass, x);
  assign_slots(pass);
  balance(pass);
  slot_x_ = pass.kept.take<float>(slots * d);
  slot_weights_ = pass.kept.take<float>(slots);
  gather(pass, x, token_of_, slots, slot_x_);
  for (std::int64_t s = 0; s < slots; ++s) slot_weights_[s] = weights_[choice_of_[s]];
  for (Middle* middle : {&routed_, &shared_}) {
    const std::int64_t size = (middle == &routed_ ? slots : n) * inter;
    middle->gate = pass.kept.take<float>(size);
    middle->up = pass.kept.take<float>(size);
    middle->hidden = pass.kept.take<float>(size);
  }
  {
    Products products(pass);
    for_each_expert([&](const Expert& w, std::int64_t first, std::int64_t count) {
      products.linear(routed(pass, w.w1), inter, d, slot_x_ + first * d, count, routed_.gate + first * inter);
      products.linear(routed(pass, w.w3), inter, d, slot_x_ + first * d, count, routed_.up + first * inter);
    });
    products.linear(w_.shared.w1, x, n, shared_.gate);
    products.linear(w_.shared.w3, x, n, shared_.up);
  }
  const auto limit = static_cast<float>(config.swiglu_limit);
  pass.training.run(
      SwigluParams{slots, inter, routed_.gate, routed_.up, slot_weights_, limit, routed_.hidden});
  pass.training.run(SwigluParams{n, inter, shared_.gate, shared_.up, nullptr, limit, shared_.hidden});
  const Arena::Scope scope(pass.scratch);
  float* slot_y = pass.scratch.take<float>(slots * d);
  {
    Products products(pass);
    for_each_expert([&](const Expert& w, std::int64_t first, std::int64_t count) {
      products.linear(routed(pass, w.w2), d, inter, routed_.hidden + first * inter, count,
                      slot_y + first * d);
    });
    products.linear(w_.shared.w2, shared_.hidden, n, y);
  }
  scatter_sum(pass, slot_y, slots_of_, y);
}

void MoeLayer::backward(Pass& pass, const float* d_y, float* d_x) {
  const Arena::Scope scope(pass.scratch);
  const Config& config = pass.config;
  const std::int64_t n = pass.n(), d = config.hidden_size, inter = config.moe_intermediate_size;
  const std::int64_t k = config.num_experts_per_tok, slots = n * k;
  float* d_slot_y = pass.scratch.take<float>(slots * d);
  float* d_hidden = pass.scratch.take<float>(slots * inter);
  float* d_shared_hidden = pass.scratch.take<float>(n * inter);
  gather(pass, d_y, token_of_, slots, d_slot_y);
  {
    Products products(pass);
    for_each_expert([&](const Expert& w, std::int64_t first, std::int64_t count) {
      products.input_gradient(routed(pass, w.w2), d, inter, d_slot_y + first * d, count,
                              d_hidden + first * inter, false);
      products.weight_gradient(w.w2, d_slot_y + first * d, routed_.hidden + first * inter, count);
    });
    products.input_gradient(w_.shared.w2, d_y, n, d_shared_hidden, false);
    products.weight_gradient(w_.shared.w2, d_y, shared_.hidden, n);
  }

  // The gradients of gate and up take the places of gate and up.
  float* d_slot_weights = pass.scratch.take<float>(slots);
  const auto limit = static_cast<float>(config.swiglu_limit);
  pass.training.run(SwigluBackwardParams{slots, inter, routed_.gate, routed_.up, slot_weights_, limit,
                                         d_hidden, routed_.gate, routed_.up, d_slot_weights});
  pass.training.run(SwigluBackwardParams{n, inter, shared_.gate, shared_.up, nullptr, limit, d_shared_hidden,
                                         shared_.gate, shared_.up, nullptr});
  float* d_slot_x = d_slot_y;  // which has been read
  {
    Products products(pass);
    for_each_expert([&](const Expert& w, std::int64_t first, std::int64_t count) {
      const float* x = slot_x_ + first * d;
      const float* d_gate = routed_.gate + first * inter;
      const float* d_up = routed_.up + first * inter;
      products.input_gradient(routed(pass, w.w1), inter, d, d_gate, count, d_slot_x + first * d, false);
      products.weight_gradient(w.w1, d_gate, x, count);
      products.weight_gradient(w.w3, d_up, x, count);
    });
    products.input_gradient(w_.shared.w1, shared_.gate, n, d_x, false);
    products.weight_gradient(w_.shared.w1, shared_.gate, x_, n);
    products.weight_gradient(w_.shared.w3, shared_.up, x_, n);
  }
  {
    Products products(pass);
    for_each_expert([&](const Expert& w, std::int64_t first, std::int64_t count) {
      products.input_gradient(routed(pass, w.w3), inter, d, routed_.up + first * inter, count,
                              d_slot_x + first * d, true);
    });
    products.input_gradient(w_.shared.w3, shared_.up, n, d_x, true);
  }
  scatter_sum(pass, d_slot_x, slots_of_, d_x);

  const std::int64_t experts = config.n_routed_experts;
  float* d_weights = pass.scratch.take<float>(slots);
  for (std::int64_t s = 0; s < slots; ++s) d_weights[choice_of_[s]] = d_slot_weights[s];
  float* d_logits = pass.scratch.take<float>(n * experts);
  pass.training.run(GateBackwardParams{n, experts, k, pass.batch.length, logits_, scores_, indices_,
                                       static_cast<float>(config.routed_scaling_factor), d_weights, d_shares_,
                                       d_logits});
  Products products(pass);
  products.weight_gradient(w_.gate, d_logits, x_, n);
  products.input_gradient(w_.gate, d_logits, n, d_x, true);
}

}  // namespace hadal
