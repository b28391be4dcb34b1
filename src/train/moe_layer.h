// The experts of one block (architecture.md section 5): route, dispatch to the experts, wherever they are
// (expert_dispatch.h), SwiGLU of each expert on its rows and of the shared one on all tokens, combine.
#pragma once

#include "train/expert_dispatch.h"

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
  void balance(Pass& pass);
  // Adds d_out^T in, d_out [rows, out], in [rows, in], to the gradients of one matrix of every expert here.
  void expert_gradients(Products& products, const Pass& pass, Linear Expert::*matrix, const float* d_out,
                        const float* in) const;
  // The values of a routed expert's matrix that the products see.
  const float* routed(const Pass& pass, const Linear& w) const;

  std::int64_t block_;
  const MoeWeights& w_;
  const float* x_ = nullptr;         // [N, d]
  float* logits_ = nullptr;          // [N, E]
  float* scores_ = nullptr;          // [N, E]
  std::int32_t* indices_ = nullptr;  // [N, k]
  float* weights_ = nullptr;         // [N, k]
  float* d_shares_ = nullptr;        // [B, E]
  ExpertDispatch dispatch_;
  float* rows_x_ = nullptr;       // [rows, d]
  float* row_weights_ = nullptr;  // [rows]
  Middle routed_, shared_;
};

}  // namespace hadal
