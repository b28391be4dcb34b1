// What training minimises: the losses of a batch as a function of the weights, and their gradient
// (docs/training.md). Forward keeps what backward reads; both are written out, one block after the other.
//
//   total = ce + mtp_weight * mtp + balance_weight * balance + index_weight * index_kl
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <hadal/error.h>

#include "base/thread_pool.h"
#include "dist/communicator.h"
#include "model/config.h"
#include "train/matmul.h"
#include "train/parameter_set.h"

namespace hadal {

struct ObjectiveOptions {
  Precision precision = Precision::bf16;  // of the large matrix products; the rest is float32
  // CSA layers attend to the index_topk rows that the indexer selects; else, as in the first stage, to every
  // visible one.
  bool sparse = false;
  bool index_loss = false;     // the indexer's KL loss, over the rows that attention sees
  bool indexer_alone = false;  // its warm-up: only gradients of the indexer are computed
  float mtp_weight = 0.3F;
  float balance_weight = 1e-4F;
  float index_weight = 1.0F;
  // Quantisation-aware: routed experts and the indexer's q and rows go through FP4 (1x32) in forward; the
  // gradient passes to the master weights as if they had not.
  bool fp4 = false;
};

// B sequences from their position 0. Token t predicts token t+1, and the MTP block token t+2.
struct TrainingBatch {
  std::int64_t size = 0;    // B
  std::int64_t length = 0;  // T
  // [B, T + 1 + num_nextn_predict_layers]
  std::span<const std::int32_t> tokens;
  // As tokens: whether predicting this token counts (assistant spans). Empty: all count.
  std::span<const std::uint8_t> counts;
  // Experts to go to instead of the router's choice, as Objective::routing() gave them for other weights on
  // the same tokens (anticipatory routing); hash-routed blocks ignore theirs. Empty: the router's.
  std::span<const std::int32_t> routing;

  std::int64_t n_tokens() const { return size * length; }
};

// Means over the tokens that count; 0 where none does.
struct Losses {
  double ce = 0;        // cross-entropy of the next token, in nats
  double mtp = 0;       // of the token after it
  double balance = 0;   // sum over blocks that route by score, mean over sequences, of sum_i f_i P_i
  double index_kl = 0;  // sum over CSA layers, mean over the queries that see a compressed row
  double total = 0;
  std::int64_t n_tokens = 0;      // that ce is the mean of
  std::int64_t n_mtp_tokens = 0;  // that mtp is
};

// The smallest and largest sum of a row or column of any mixing matrix (comb) of the last batch.
struct MixingSums {
  float least_row = 1, most_row = 1, least_column = 1, most_column = 1;
};

class Objective {
 public:
  // Errors: unsupported, for a config that cannot be trained here (more than one MTP block; hc_mult above
  // 16). The pool must outlive the objective, which belongs to one thread. `ranks`: among whom the experts of
  // the weights are spread (ParameterSet::placement); all must then run batches together, one of each. May be
  // null where they are not.
  static Result<Objective> create(const Config& config, ThreadPool& pool,
                                  const ObjectiveOptions& options = {}, Communicator* ranks = nullptr);
  Objective(Objective&&) noexcept;
  Objective& operator=(Objective&&) noexcept;
  ~Objective();

  const ObjectiveOptions& options() const;
  void set_options(const ObjectiveOptions& options);

  // gradients += scale * d total / d weights. Bitwise the same for any number of threads. Those of routed
  // experts go to `expert_gradients`, which may be the same set.
  Losses forward_backward(const ParameterSet& weights, const TrainingBatch& batch, float scale,
                          ParameterSet& gradients, ParameterSet& expert_gradients);
  Losses forward_backward(const ParameterSet& weights, const TrainingBatch& batch, float scale,
                          ParameterSet& gradients) {
    return forward_backward(weights, batch, scale, gradients, gradients);
  }
  Losses evaluate(const ParameterSet& weights, const TrainingBatch& batch);
  // The main model's logits, [B * T, vocab].
  void logits(const ParameterSet& weights, const TrainingBatch& batch, std::span<float> out);

  // Of the last batch:
  // how many of its tokens each expert got, [num_blocks, n_routed_experts], for the aux-loss-free bias;
  std::span<const std::int64_t> expert_load() const;
  // where they went, [num_blocks, B * T, num_experts_per_tok];
  std::span<const std::int32_t> routing() const;
  const MixingSums& mixing_sums() const;
  // Of all batches so far, the floating-point operations of its matrix products, attention aside: 2 m n k
  // each.
  std::int64_t matmul_flops() const;
  // Scratch and kept activations, in bytes.
  std::int64_t memory() const;

 private:
  struct Impl;
  explicit Objective(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal
