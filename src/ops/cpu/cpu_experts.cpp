// The experts of a batch: tokens gathered by expert, so that every matrix that is needed is read once.
#include <algorithm>
#include <numeric>

#include "ops/cpu/cpu_backend.h"

namespace hadal {

// A slot is a (token, expert) pair. Slots are sorted by expert, tokens ascending inside one; the shared
// expert, to which every token goes, comes last as expert number n_experts. What is left to another call has
// none.
void CpuBackend::assign_slots(const ExpertsParams& p) {
  const auto n_experts = static_cast<std::int64_t>(p.experts.size());
  const auto here = [&](std::int64_t i) {
    return p.experts[static_cast<std::size_t>(p.indices[i])].has_weights();
  };
  expert_begin_.assign(static_cast<std::size_t>(n_experts) + 2, 0);
  for (std::int64_t i = 0; i < p.n_tokens * p.k; ++i) {
    if (here(i)) ++expert_begin_[static_cast<std::size_t>(p.indices[i]) + 1];
  }
  expert_begin_.back() = static_cast<std::int32_t>(p.shared != nullptr ? p.n_tokens : 0);
  std::partial_sum(expert_begin_.begin(), expert_begin_.end(), expert_begin_.begin());

  const std::int64_t routed = expert_begin_[static_cast<std::size_t>(n_experts)],
                     slots = expert_begin_.back();
  next_slot_.assign(expert_begin_.begin(), expert_begin_.end() - 1);
  token_of_.resize(static_cast<std::size_t>(slots));
  weight_of_.resize(static_cast<std::size_t>(slots));
  for (std::int64_t i = 0; i < p.n_tokens * p.k; ++i) {
    if (!here(i)) continue;
    const auto slot = static_cast<std::size_t>(next_slot_[static_cast<std::size_t>(p.indices[i])]++);
    token_of_[slot] = static_cast<std::int32_t>(i / p.k);
    weight_of_[slot] = p.weights[i];
  }
  std::iota(token_of_.begin() + routed, token_of_.end(), 0);
  std::fill(weight_of_.begin() + routed, weight_of_.end(), 1.0F);
  slot_of_.resize(static_cast<std::size_t>(slots));
  std::iota(slot_of_.begin(), slot_of_.end(), 0);

  active_.clear();  // experts that have slots, ascending; the shared one last
  for (std::int64_t e = 0; e <= n_experts; ++e) {
    if (expert_begin_[static_cast<std::size_t>(e) + 1] > expert_begin_[static_cast<std::size_t>(e)])
      active_.push_back(static_cast<std::int32_t>(e));
  }
}

void CpuBackend::experts(const ExpertsParams& p) {
  const std::int64_t unit_depth = p.rounding != InputRounding::none ? 128 : 32;  // what the kernels ask of K
  if (p.dim % unit_depth != 0 || p.inter % unit_depth != 0) return ref::experts(p, pool_);
  assign_slots(p);
  const auto n_experts = static_cast<std::int64_t>(p.experts.size());
  const std::int64_t slots = expert_begin_.back();
  const auto n_active = static_cast<std::int64_t>(active_.size());
  float* gate = grow(gate_, slots * p.inter);
  float* up = grow(up_, slots * p.inter);
  float* hidden = grow(hidden_, slots * p.inter);

  const auto weights_of = [&](std::int64_t e) -> const Expert& {
    return e == n_experts ? *p.shared : p.experts[static_cast<std::size_t>(e)];
  };
  // Rows [begin, end) of W on all slots of expert e; the arrays of indices belong to slots.
  const auto call = [&](std::int64_t e, const Linear& w, std::int64_t begin, std::int64_t end,
                        const Input& in, const std::int32_t* x_index, float* y, const std::int32_t* y_index,
                        bool accumulate) {
    const std::int64_t first = expert_begin_[static_cast<std::size_t>(e)];
    const std::int64_t count = expert_begin_[static_cast<std::size_t>(e) + 1] - first;
    multiply(w, begin, end, {count, 0, x_index + first, y_index + first}, in, y, accumulate);
  };
  // Routed experts share one format; the shared expert may have another.
  const Linear::Format routed_format = p.k > 0 ? p.experts[0].w1.format : p.shared->w1.format,
                       shared_format = p.shared != nullptr ? p.shared->w1.format : routed_format;
  const auto inputs = [&](const float* rows, std::int64_t count, std::int64_t dim, InputStorage& storage,
                          InputStorage& shared_storage) {
    const Input routed_input = input(rows, dim, count, dim, routed_format, p.rounding, storage);
    const bool same = shared_format == routed_format ||
                      (routed_input.x == nullptr && routed_input.split == nullptr &&
                       routed_input.e4m3.values == nullptr && is_quantised(shared_format));
    return std::pair(
        routed_input,
        same ? routed_input : input(rows, dim, count, dim, shared_format, p.rounding, shared_storage));
  };

  // w1 and w3 of all active experts: one loop over (expert, panel of rows).
  const auto inputs_x = inputs(p.x, p.n_tokens, p.dim, input_, shared_input_);
  const std::int64_t at_once = panel_rows(routed_format, p.rounding);
  const std::int64_t panels = (p.inter + at_once - 1) / at_once;
  pool_.parallel_for(n_active * panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t e = active_[static_cast<std::size_t>(unit / panels)];
      const std::int64_t row = unit % panels * at_once;
      const std::int64_t stop = std::min(row + at_once, p.inter);
      const Expert& w = weights_of(e);
      const Input& in = e == n_experts ? inputs_x.second : inputs_x.first;
      call(e, w.w1, row, stop, in, token_of_.data(), gate, slot_of_.data(), false);
      call(e, w.w3, row, stop, in, token_of_.data(), up, slot_of_.data(), false);
    }
  });
  pool_.parallel_for(slots, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      kernels_.swiglu(gate + s * p.inter, up + s * p.inter, weight_of_[static_cast<std::size_t>(s)],
                      p.swiglu_limit, p.inter, hidden + s * p.inter);
    }
  });

  // w2: a panel of output rows takes the experts in ascending order, so every out[t] is summed in that order.
  const auto inputs_h = inputs(hidden, slots, p.inter, hidden_input_, shared_hidden_input_);
  const std::int64_t out_panels = (p.dim + at_once - 1) / at_once;
  pool_.parallel_for(out_panels, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t row = begin * at_once, stop = std::min(end * at_once, p.dim);
    for (std::int64_t t = 0; t < p.n_tokens && !p.accumulate; ++t)
      std::fill(p.out + t * p.dim + row, p.out + t * p.dim + stop, 0.0F);
    for (const std::int32_t e : active_) {
      call(e, weights_of(e).w2, row, stop, e == n_experts ? inputs_h.second : inputs_h.first, slot_of_.data(),
           p.out, token_of_.data(), true);
    }
  });
}

}  // namespace hadal
