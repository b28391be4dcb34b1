// The experts of one block (architecture.md section 5). The tokens of an expert lie together: a slot is a
// (token, chosen expert) pair, slots go by ascending expert, then token.
#pragma once

#include <vector>

#include "train/pass.h"

namespace hadal {

class MoeLayer {
 public:
  MoeLayer(std::int64_t block, const MoeWeights& w) : block_(block), w_(w) {}

  // x, y: [N, d]; x must stay until backward.
  void forward(Pass& pass, const float* x, float* y);
  // d_x is set.
  void backward(Pass& pass, const float* d_y, float* d_x);

 private:
  // A SwiGLU network on some rows, kept for backward.
  struct Middle {
    float* gate = nullptr;    // [rows, I]
    float* up = nullptr;      // [rows, I]
    float* hidden = nullptr;  // [rows, I], weighed
  };
  void route(Pass& pass, const float* x);
  void assign_slots(Pass& pass);
  void balance(Pass& pass);
  // Calls visit(expert, first slot, slots) for every expert that has any.
  template <class Visit>
  void for_each_expert(Visit&& visit) const {
    for (std::size_t e = 0; e + 1 < first_slot_.size(); ++e) {
      const std::int64_t n = first_slot_[e + 1] - first_slot_[e];
      if (n > 0) visit(w_.experts[e], first_slot_[e], n);
    }
  }
  // The values of a routed expert's matrix that the products see.
  const float* routed(const Pass& pass, const Linear& w) const;

  std::int64_t block_;
  const MoeWeights& w_;
  const float* x_ = nullptr;              // [N, d]
  float* logits_ = nullptr;               // [N, E]
  float* scores_ = nullptr;               // [N, E]
  std::int32_t* indices_ = nullptr;       // [N, k]
  float* weights_ = nullptr;              // [N, k]
  float* d_shares_ = nullptr;             // [B, E]
  std::vector<std::int64_t> first_slot_;  // [E + 1]
  std::int32_t* token_of_ = nullptr;      // [N * k], by slot
  std::int32_t* choice_of_ = nullptr;     // [N * k], by slot: place in indices_ and weights_
  std::int32_t* slots_of_ = nullptr;      // [N, k], ascending
  float* slot_x_ = nullptr;               // [N * k, d]
  float* slot_weights_ = nullptr;         // [N * k]
  Middle routed_, shared_;
};

}  // namespace hadal
