// What the layers of one pass over a batch share: the batch, the weights and where gradients go, the
// backends, and two arenas: `kept` for what forward leaves to backward, `scratch` for the rest.
//
// Layers (attention_layer.h, moe_layer.h, ...) live as long as a pass. Each has a forward and a backward,
// which are called once each, backward in the opposite order; N = B * T tokens lie sequence by sequence.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/arena.h"
#include "model/config.h"
#include "ops/backend.h"
#include "ops/training_backend.h"
#include "train/objective.h"
#include "train/parameter_set.h"

namespace hadal {

struct Pass {
  const Config& config;
  const ObjectiveOptions& options;
  const TrainingBatch& batch;
  Backend& backend;
  TrainingBackend& training;
  Matmul& matmul;
  ThreadPool& pool;
  Arena& kept;
  Arena& scratch;
  const ParameterSet& weights;
  const float* quantised =
      nullptr;  // the routed experts through FP4, where `weights` has them; null: as they are
  ParameterSet* gradients = nullptr;         // null: no backward follows
  ParameterSet* expert_gradients = nullptr;  // of routed experts; may be the same
  Communicator* ranks = nullptr;             // that the experts are spread over, where they are
  float scale = 1;                           // of the gradient
  std::span<const std::int32_t> tokens;      // [N]
  const float* sliding_cos = nullptr;        // [N, r/2]
  const float* sliding_sin = nullptr;
  const float* compress_cos = nullptr;
  const float* compress_sin = nullptr;
  // What the layers report.
  std::span<std::int64_t> expert_load;  // [num_blocks, E]
  std::span<std::int32_t> routing;      // [num_blocks, N, k]
  MixingSums& mixing_sums;
  double balance = 0, index_kl = 0;

  std::int64_t n() const { return batch.n_tokens(); }
  bool wants_gradients() const { return gradients != nullptr; }
  float eps() const { return static_cast<float>(config.rms_norm_eps); }

  // Of a weight: its gradient's place, and the numbers to multiply with.
  float* gradient(const Linear& w) const { return gradient(reinterpret_cast<const float*>(w.weight)); }
  float* gradient(const Vector& w) const { return gradient(w.data()); }
  float* gradient(const float* w) const { return gradients->twin(weights, w); }
  float* expert_gradient(const Linear& w) const {
    return expert_gradients->twin(weights, reinterpret_cast<const float*>(w.weight));
  }
  const float* values(const Linear& w) const { return reinterpret_cast<const float*>(w.weight); }

  // out = rmsnorm(x) * w; w may be null.
  void rms_norm(const float* x, const Vector* w, std::int64_t rows, std::int64_t dim, float* out) const;
  // d: of out, then of x.
  void rms_norm_backward(const float* x, const Vector* w, std::int64_t rows, std::int64_t dim,
                         float* d) const;
  // The rotation of N tokens' heads, and with `inverse` its gradient.
  void rope(bool compressed, std::int64_t heads, std::int64_t dim, bool inverse, float* x) const;
  // to += from
  void add(const float* from, std::int64_t n, float* to) const;
};

// Products that do not depend on each other, run together. The three of a linear y = W x on `rows` rows:
class Products {
 public:
  explicit Products(const Pass& pass) : pass_(pass) {}
  ~Products() { run(); }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  // y = W x
  void linear(const Linear& w, const float* x, std::int64_t rows, float* y) {
    linear(pass_.values(w), w.out, w.in, x, rows, y);
  }
  void linear(const float* w, std::int64_t out, std::int64_t in, const float* x, std::int64_t rows, float* y);
  // d_x (+)= W^T d_y
  void input_gradient(const Linear& w, const float* d_y, std::int64_t rows, float* d_x, bool accumulate) {
    input_gradient(pass_.values(w), w.out, w.in, d_y, rows, d_x, accumulate);
  }
  void input_gradient(const float* w, std::int64_t out, std::int64_t in, const float* d_y, std::int64_t rows,
                      float* d_x, bool accumulate);
  // d_W += d_y x^T summed over the rows
  void weight_gradient(const Linear& w, const float* d_y, const float* x, std::int64_t rows) {
    weight_gradient(pass_.gradient(w), w.out, w.in, d_y, x, rows);
  }
  void weight_gradient(float* d_w, std::int64_t out, std::int64_t in, const float* d_y, const float* x,
                       std::int64_t rows);
  void add(const MatmulParams& p) { pending_.push_back(p); }
  // Runs what has been asked for.
  void run();

 private:
  const Pass& pass_;
  std::vector<MatmulParams> pending_;
};

}  // namespace hadal
