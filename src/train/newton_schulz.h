// The orthogonalisation inside Muon (report, Algorithm 1; training.md section 1): U with the singular vectors
// of X and singular values near one.
//
// With Y = V diag(s) W^T, the step Y <- a Y + b (Y Y^T) Y + c (Y Y^T)^2 Y keeps V and W and maps every s to
// a s + b s^3 + c s^5. Eight steps with (3.4445, -4.7750, 2.0315) blow small s up by 3.4 each, at the price
// of values that wander between 0.7 and 1.2; two with (2, -1.5, 0.5), whose map has value 1 and slope 0 at 1,
// settle them. Started from X / ||X||_F, an s of 1e-4 or more ends in [0.999, 1.003] in exact arithmetic.
#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "train/matmul.h"

namespace hadal {

// Multiplications and additions of one orthogonalisation of a [rows, columns] matrix. Of the symmetric
// products only half is counted, which is what is done.
double newton_schulz_flops(std::int64_t rows, std::int64_t columns);

// Holds its scratch memory; one per thread.
class NewtonSchulz {
 public:
  explicit NewtonSchulz(Precision precision) : precision_(precision) {}

  // x [rows, columns] becomes U, in place; zero stays zero. The products are on `matmul`'s threads, whose
  // number does not show in the result.
  void run(float* x, std::int64_t rows, std::int64_t columns, Matmul& matmul);

 private:
  Precision precision_;
  Buffer<float> z_, next_;       // [m, n], n the smaller side
  Buffer<float> gram_, factor_;  // [n, n]
};

}  // namespace hadal
