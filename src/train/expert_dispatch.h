// The way of tokens to their experts and back, of one block and batch. A slot is a (token, chosen expert)
// pair of this rank's batch; slots go by ascending expert, then token. A row is what a slot becomes at the
// rank that has its expert; rows go by ascending expert, then rank, then token. Ranks hold ascending parts of
// a step's sequences, so an expert meets its tokens in their order in the step. Where this rank has every
// expert, rows are slots, and nothing moves.
#pragma once

#include <cstdint>
#include <vector>

#include "train/pass.h"

namespace hadal {

class ExpertDispatch {
 public:
  // indices: [N, k], the chosen experts. Counts and places; of spread experts the ranks exchange their
  // counts.
  void plan(Pass& pass, const std::int32_t* indices);

  std::int64_t slots() const { return slots_; }
  std::int64_t rows() const { return first_row_.back(); }
  std::int64_t load(std::int64_t expert) const {  // slots
    const auto e = static_cast<std::size_t>(expert);
    return first_slot_[e + 1] - first_slot_[e];
  }

  // rows [rows(), d], in `arena`, of their tokens' x [N, d].
  float* send(const Pass& pass, const float* x, Arena& arena) const;
  // y [N, d] += the rows [rows(), d] of each token, ascending by expert.
  void combine(const Pass& pass, const float* rows, float* y) const;
  // One number for every (token, choice) [N, k] to its row [rows()], in `arena`, and back.
  float* send_weights(const Pass& pass, const float* weights, Arena& arena) const;
  void return_weights(const Pass& pass, const float* rows, float* weights) const;

  // visit(expert, first row, rows) for every expert of this rank that has any.
  template <class Visit>
  void for_each_expert(Visit&& visit) const {
    for (std::size_t e = 0; e + 1 < first_row_.size(); ++e)
      if (first_row_[e + 1] > first_row_[e])
        visit(first_expert_ + e, first_row_[e], first_row_[e + 1] - first_row_[e]);
  }
  // Likewise, of these the rows that come from one rank.
  int sources() const { return sources_; }
  template <class Visit>
  void for_each_expert_of(int source, Visit&& visit) const {
    for (std::size_t e = 0; e + 1 < first_row_.size(); ++e) {
      const std::size_t i = e * static_cast<std::size_t>(sources_) + static_cast<std::size_t>(source);
      if (count_[i] > 0) visit(first_expert_ + e, place_[i], count_[i]);
    }
  }

 private:
  bool spread() const { return sources_ > 1; }
  void assign_slots(Pass& pass, const std::int32_t* indices);
  void exchange_counts(const Pass& pass);
  // Rows of `width` numbers there and back. The scratch that they take is the caller's to give back.
  void slots_to_rows(const Pass& pass, const float* slots, std::int64_t width, float* rows) const;
  void rows_to_slots(const Pass& pass, const float* rows, std::int64_t width, float* slots) const;
  // Calls copy(place in the order of arrival, row, rows) for the rows of each source and expert.
  template <class Copy>
  void for_each_arrival(Copy&& copy) const;

  std::int64_t slots_ = 0, k_ = 0;
  std::vector<std::int64_t> first_slot_;  // [E + 1]
  std::int32_t* token_of_ = nullptr;      // [N * k], by slot
  std::int32_t* choice_of_ = nullptr;     // [N * k], by slot: place in [N, k]
  std::int32_t* slots_of_ = nullptr;      // [N, k], ascending

  int sources_ = 1;                           // ranks that rows come from
  std::size_t first_expert_ = 0;              // of this rank
  std::vector<std::int64_t> first_row_;       // [own experts + 1]
  std::vector<std::int64_t> count_, place_;   // [own experts, sources]: rows, and the first of them
  std::vector<std::int64_t> sent_, arrived_;  // [ranks]: slots that leave for each rank, rows that come
};

}  // namespace hadal
