// One operand of a matrix product as the kernel reads it (matmul_kernel.h): where its panels are, packing
// them, and the product of two.
#pragma once

#include "ops/cpu/matmul_kernel.h"

namespace hadal::cpu {

// Memory is the caller's: `words()` 32-bit words, of which every panel is packed once.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // The left (rows of a) or right (columns of b) operand: `rows` rows or columns of `depth` numbers.
  PackedMatrix(const MatmulKernel& kernel, bool left, std::int64_t rows, std::int64_t depth)
      : kernel_(&kernel),
        width_(left ? kernel.a_width : kernel.b_width),
        left_(left),
        rows_(rows),
        depth_(depth),
        panels_((rows + width_ - 1) / width_) {}

  bool operator==(const PackedMatrix&) const = default;

  std::int64_t panels() const { return panels_; }
  std::int64_t width() const { return width_; }
  std::int64_t words() const { return panels_ * width_ * kernel_->units(depth_); }
  std::int64_t rows_of(std::int64_t panel) const { return std::min(width_, rows_ - panel * width_); }

  // Element (r, k) is x[r * stride + k] or, transposed, x[k * stride + r].
  void pack(std::int64_t panel, const float* x, std::int64_t stride, bool transposed,
            std::uint32_t* words) const {
    for (std::int64_t k = 0; k < depth_; k += kMatmulDepth)
      pack(panel, x, stride, transposed, k, std::min(kMatmulDepth, depth_ - k), words + place(panel, k));
  }
  // A symmetric matrix of which the tiles on and above the diagonal are there (multiply_upper): what a panel
  // needs from before its own rows' first is read across the diagonal.
  void pack_symmetric(std::int64_t panel, const float* x, std::int64_t stride, std::uint32_t* words) const {
    for (std::int64_t k = 0; k < depth_; k += kMatmulDepth) {
      const std::int64_t depth = std::min(kMatmulDepth, depth_ - k);
      const std::int64_t across = std::clamp(panel * width_ - k, std::int64_t{0}, depth);
      std::uint32_t* out = words + place(panel, k);
      // `across` is even, as panels and depth blocks are, or all of the depth.
      if (across > 0) pack(panel, x, stride, true, k, across, out);
      if (across < depth)
        pack(panel, x, stride, false, k + across, depth - across, out + kernel_->units(across) * width_);
    }
  }
  void pack(const float* x, std::int64_t stride, bool transposed, std::uint32_t* words) const {
    for (std::int64_t panel = 0; panel < panels_; ++panel) pack(panel, x, stride, transposed, words);
  }
  // The word where depth k of a panel begins; k % kMatmulDepth == 0.
  std::int64_t place(std::int64_t panel, std::int64_t k) const {
    return (kernel_->units(k) * panels_ + panel * units_at(k)) * width_;
  }
  std::int64_t units_at(std::int64_t k) const { return kernel_->units(std::min(kMatmulDepth, depth_ - k)); }
  std::int64_t depth() const { return depth_; }

 private:
  void pack(std::int64_t panel, const float* x, std::int64_t stride, bool transposed, std::int64_t k,
            std::int64_t depth, std::uint32_t* out) const {
    (left_ ? kernel_->pack_a : kernel_->pack_b)(
        {x, stride, transposed, panel * width_, rows_of(panel), k, depth}, out);
  }

  const MatmulKernel* kernel_ = nullptr;
  std::int64_t width_ = 0;
  bool left_ = false;
  std::int64_t rows_ = 0, depth_ = 0, panels_ = 0;
};

// Panels [a_begin, a_end) of a times [b_begin, b_end) of b, into their place in c [rows of a, columns of b].
inline void multiply_panels(const MatmulKernel& kernel, const PackedMatrix& a, const std::uint32_t* a_words,
                            std::int64_t a_begin, std::int64_t a_end, const PackedMatrix& b,
                            const std::uint32_t* b_words, std::int64_t b_begin, std::int64_t b_end, float* c,
                            std::int64_t c_stride, bool accumulate) {
  for (std::int64_t k = 0; k < a.depth(); k += kMatmulDepth) {
    for (std::int64_t j = b_begin; j < b_end; ++j) {
      for (std::int64_t i = a_begin; i < a_end; ++i) {
        kernel.multiply(a_words + a.place(i, k), b_words + b.place(j, k), a.units_at(k), a.rows_of(i),
                        b.rows_of(j), c + i * a.width() * c_stride + j * b.width(), c_stride,
                        accumulate || k > 0);
      }
    }
  }
}

}  // namespace hadal::cpu
