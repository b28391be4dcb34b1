// The products of Newton-Schulz: C = alpha A B + beta D, symmetric or not, on all threads for a large matrix
// or on one thread beside others (which Matmul does not do). An element of C is one chain of multiply-adds
// over ascending k (BF16: over pairs of k), so neither tiles nor threads show in it.
#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "train/matmul.h"

namespace hadal {

// Holds the packed operands of the latest product; one per thread.
class MatrixProduct {
 public:
  MatrixProduct(const cpu::Kernels& kernels, Precision precision)
      : kernels_(kernels), precision_(precision) {}

  struct Args {
    const float* a = nullptr;  // [rows, depth]
    const float* b = nullptr;  // [depth, columns]; b_transposed: [columns, depth]
    bool b_transposed = false;
    float* c = nullptr;  // [rows, columns]; none of the operands
    std::int64_t rows = 0, columns = 0, depth = 0;
    float alpha = 1, beta = 0;
    const float* add = nullptr;  // D [rows, columns]; may be a or b
    // C is known to be symmetric (A A^T, or a product of commuting symmetric matrices): half of it is
    // multiplied, the other half copied. Multiplying a . b is multiplying b . a, so the bits are the same.
    bool symmetric = false;
  };
  // On all threads of `pool`, or, if it is null, on the calling one.
  void run(const Args& args, ThreadPool* pool);

 private:
  void pack_panel(const Args& args, std::int64_t panel);
  void multiply_block(const Args& args, std::int64_t row_block, std::int64_t panel);

  const cpu::Kernels& kernels_;
  Precision precision_;
  Buffer<float> panels_;               // float32, or BF16 where the instruction set has no dot product for it
  Buffer<std::uint16_t> panels_bf16_;  // [panel][depth / 2][columns][2]
  Buffer<float> rounded_;              // A [rows, depth] after rounding to BF16, likewise
  Buffer<std::uint16_t> rounded_bf16_;  // A [rows, depth rounded up to even]
};

}  // namespace hadal
