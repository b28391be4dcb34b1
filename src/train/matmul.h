// Products of large matrices for the trainer: c (+)= op(a) op(b), operands in float32 memory.
//
// Every element of c has one order of summation over k, whatever the shape of the call and the number of
// threads: blocks of kDepth ascending, within a block ascending.
#pragma once

#include <cstdint>
#include <span>

#include "base/buffer.h"
#include "base/thread_pool.h"

namespace hadal {

enum class Precision : std::uint8_t {
  f32,   // float32 multiply-adds
  bf16,  // operands rounded to BF16 (nearest even), sums in float32
};

// Row-major with `stride` floats between rows.
struct MatmulParams {
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;  // [m, k]; transposed: [k, m]
  std::int64_t a_stride = 0;
  bool a_transposed = false;
  const float* b = nullptr;  // [k, n]; transposed: [n, k], as the weight of a linear lies in memory
  std::int64_t b_stride = 0;
  bool b_transposed = false;
  float* c = nullptr;  // [m, n]
  std::int64_t c_stride = 0;
  bool accumulate = false;
  // Then c <- scale c + add_scale add, if there is `add`: [m, n] with the stride of c.
  float scale = 1, add_scale = 0;
  const float* add = nullptr;
  // A symmetric matrix needs to be there, and c is made, only on and above the diagonal (and here and there
  // below it, which is nobody's business). a b = (a b)^T costs half of the multiplications.
  bool a_symmetric = false, b_symmetric = false, c_symmetric = false;
};

class Matmul {
 public:
  explicit Matmul(ThreadPool& pool) : pool_(pool) {}

  void run(const MatmulParams& p, Precision precision) { run({&p, 1}, precision); }
  // Independent products (no c is an operand of another or overlaps one), shared out over the threads
  // together: many small ones cost what one large one does.
  void run(std::span<const MatmulParams> products, Precision precision);

  // 2 m n k of all products so far; of a symmetric c half.
  std::int64_t flops() const { return flops_; }

 private:
  ThreadPool& pool_;
  std::int64_t flops_ = 0;
  Buffer<std::uint32_t> packed_;  // operands as the kernel reads them; grows to the largest call
};

}  // namespace hadal
