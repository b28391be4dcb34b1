// Muon (report, section 2.4, Algorithm 1): for each matrix W [n, m] with gradient G and momentum M
//
//   M <- mu M + G
//   U  = NewtonSchulz(mu M + G)                        (Nesterov: a look ahead by one more momentum step)
//   W <- W (1 - lr wd) - lr U sqrt(max(n, m)) gamma
//
// U has n singular values of one (n <= m), so its entries have RMS sqrt(n / (n m)) = 1 / sqrt(m): the factor
// sqrt(m) gamma makes the update's RMS gamma, which is about AdamW's, whose learning rates therefore serve.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "train/newton_schulz.h"

namespace hadal {

struct MuonOptions {
  float momentum = 0.95F;  // mu
  float weight_decay = 0.1F;
  float gamma = 0.18F;
  Precision precision = Precision::bf16;  // of Newton-Schulz; M and W are float32
};

// One logically independent matrix, row-major without gaps.
struct MuonMatrix {
  float* weight = nullptr;
  float* momentum = nullptr;
  const float* gradient = nullptr;
  std::int64_t rows = 0, columns = 0;

  double flops() const { return newton_schulz_flops(rows, columns); }
};

class Muon {
 public:
  // The pool must outlive it.
  Muon(const MuonOptions& options, ThreadPool& pool);

  // One step of all matrices. `gradient_scale` multiplies G (clipping). Matrices that are large beside the
  // rest share all threads, one after the other; the others go one to a thread, the costly ones first. Which
  // is which does not show in the result.
  void step(std::span<const MuonMatrix> matrices, float learning_rate, float gradient_scale = 1);

 private:
  // What one matrix at a time needs, on all threads or on one.
  struct Worker {
    Worker(ThreadPool& threads, Precision precision)
        : pool(threads), matmul(threads), newton_schulz(precision) {}
    ThreadPool& pool;
    Matmul matmul;
    NewtonSchulz newton_schulz;
    Buffer<float> update;
  };
  void step_matrix(const MuonMatrix& matrix, float learning_rate, float gradient_scale, Worker& worker) const;

  MuonOptions options_;
  ThreadPool& pool_;
  std::unique_ptr<ThreadPool> alone_;  // of one: work is done by whoever asks
  Worker together_;
  std::vector<Worker> workers_;  // [pool.size()]
};

}  // namespace hadal
