#include "train/expert_dispatch.h"

#include <algorithm>
#include <numeric>

namespace hadal {

void ExpertDispatch::plan(Pass& pass, const std::int32_t* indices) {
  assign_slots(pass, indices);
  sources_ = pass.weights.placement().ranks;
  if (spread()) return exchange_counts(pass);
  first_row_ = place_ = first_slot_;
  count_.clear();
  for (std::size_t e = 0; e + 1 < first_slot_.size(); ++e)
    count_.push_back(first_slot_[e + 1] - first_slot_[e]);
}

void ExpertDispatch::assign_slots(Pass& pass, const std::int32_t* indices) {
  k_ = pass.config.num_experts_per_tok;
  slots_ = pass.n() * k_;
  token_of_ = pass.kept.take<std::int32_t>(slots_);
  choice_of_ = pass.kept.take<std::int32_t>(slots_);
  slots_of_ = pass.kept.take<std::int32_t>(slots_);
  first_slot_.assign(static_cast<std::size_t>(pass.config.n_routed_experts + 1), 0);
  for (std::int64_t i = 0; i < slots_; ++i) ++first_slot_[static_cast<std::size_t>(indices[i]) + 1];
  std::partial_sum(first_slot_.begin(), first_slot_.end(), first_slot_.begin());
  std::vector<std::int64_t> next(first_slot_.begin(), first_slot_.end() - 1);
  for (std::int64_t i = 0; i < slots_; ++i) {
    const std::int64_t slot = next[static_cast<std::size_t>(indices[i])]++;
    token_of_[slot] = static_cast<std::int32_t>(i / k_);
    choice_of_[slot] = static_cast<std::int32_t>(i);
    slots_of_[i] = static_cast<std::int32_t>(slot);
  }
  for (std::int64_t t = 0; t < pass.n(); ++t) std::sort(slots_of_ + t * k_, slots_of_ + (t + 1) * k_);
}

void ExpertDispatch::exchange_counts(const Pass& pass) {
  const ExpertPlacement& placement = pass.weights.placement();
  const auto ranks = static_cast<std::size_t>(placement.ranks);
  const std::int64_t first = placement.first(placement.rank),
                     own = placement.first(placement.rank + 1) - first;
  first_expert_ = static_cast<std::size_t>(first);
  // Slots of each expert to its owner: to rank r as many numbers as it has experts, from everyone `own`.
  std::vector<std::int64_t> loads, to_each, of_sources(static_cast<std::size_t>(own) * ranks);
  for (std::int64_t e = 0; e < placement.experts; ++e) loads.push_back(load(e));
  sent_.clear();
  for (int r = 0; r < placement.ranks; ++r) {
    const auto begin = static_cast<std::size_t>(placement.first(r)),
               end = static_cast<std::size_t>(placement.first(r + 1));
    to_each.push_back(static_cast<std::int64_t>(end - begin));
    sent_.push_back(first_slot_[end] - first_slot_[begin]);
  }
  const std::vector<std::int64_t> from_each(ranks, own);
  pass.ranks->exchange_rows(to_each, loads.data(), from_each, of_sources.data(), sizeof(std::int64_t));

  first_row_.assign(1, 0);
  count_.clear();
  place_.clear();
  arrived_.assign(ranks, 0);
  std::int64_t row = 0;
  for (std::size_t e = 0; e < static_cast<std::size_t>(own); ++e) {
    for (std::size_t r = 0; r < ranks; ++r) {
      const std::int64_t n = of_sources[r * static_cast<std::size_t>(own) + e];
      place_.push_back(row);
      count_.push_back(n);
      arrived_[r] += n;
      row += n;
    }
    first_row_.push_back(row);
  }
}

template <class Copy>
void ExpertDispatch::for_each_arrival(Copy&& copy) const {
  std::int64_t at = 0;
  for (int source = 0; source < sources_; ++source) {
    for_each_expert_of(source, [&](std::size_t, std::int64_t row, std::int64_t n) {
      copy(at, row, n);
      at += n;
    });
  }
}

void ExpertDispatch::slots_to_rows(const Pass& pass, const float* slots, std::int64_t width,
                                   float* rows) const {
  float* arrived = pass.scratch.take<float>(this->rows() * width);
  pass.ranks->exchange_rows(sent_, slots, arrived_, arrived, width * std::int64_t{sizeof(float)});
  for_each_arrival([&](std::int64_t at, std::int64_t row, std::int64_t n) {
    std::copy_n(arrived + at * width, n * width, rows + row * width);
  });
}

void ExpertDispatch::rows_to_slots(const Pass& pass, const float* rows, std::int64_t width,
                                   float* slots) const {
  float* leaving = pass.scratch.take<float>(this->rows() * width);
  for_each_arrival([&](std::int64_t at, std::int64_t row, std::int64_t n) {
    std::copy_n(rows + row * width, n * width, leaving + at * width);
  });
  pass.ranks->exchange_rows(arrived_, leaving, sent_, slots, width * std::int64_t{sizeof(float)});
}

float* ExpertDispatch::send(const Pass& pass, const float* x, Arena& arena) const {
  const std::int64_t d = pass.config.hidden_size;
  float* rows = arena.take<float>(this->rows() * d);
  float* slots = spread() ? pass.scratch.take<float>(slots_ * d) : rows;
  pass.pool.parallel_for(slots_, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) std::copy_n(x + token_of_[s] * d, d, slots + s * d);
  });
  if (spread()) slots_to_rows(pass, slots, d, rows);
  return rows;
}

void ExpertDispatch::combine(const Pass& pass, const float* rows, float* y) const {
  const std::int64_t d = pass.config.hidden_size;
  if (spread()) {
    float* slots = pass.scratch.take<float>(slots_ * d);
    rows_to_slots(pass, rows, d, slots);
    rows = slots;
  }
  pass.pool.parallel_for(pass.n(), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t i = 0; i < k_; ++i) {
        const float* row = rows + slots_of_[t * k_ + i] * d;
        float* to = y + t * d;
        for (std::int64_t c = 0; c < d; ++c) to[c] += row[c];
      }
    }
  });
}

float* ExpertDispatch::send_weights(const Pass& pass, const float* weights, Arena& arena) const {
  float* rows = arena.take<float>(this->rows());
  float* slots = spread() ? pass.scratch.take<float>(slots_) : rows;
  for (std::int64_t s = 0; s < slots_; ++s) slots[s] = weights[choice_of_[s]];
  if (spread()) slots_to_rows(pass, slots, 1, rows);
  return rows;
}

void ExpertDispatch::return_weights(const Pass& pass, const float* rows, float* weights) const {
  if (spread()) {
    float* slots = pass.scratch.take<float>(slots_);
    rows_to_slots(pass, rows, 1, slots);
    rows = slots;
  }
  for (std::int64_t s = 0; s < slots_; ++s) weights[choice_of_[s]] = rows[s];
}

}  // namespace hadal
