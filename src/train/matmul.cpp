#include "train/matmul.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "ops/cpu/packed_matrix.h"

namespace hadal {
namespace {

// One thread's piece of c, in panels: its part of a packed depth block then stays in the second-level cache
// while a panel of b after the other passes through the first.
constexpr std::int64_t kPieceRows = 8, kPieceColumns = 2;

// An operand as it is packed, and where its panels begin among those of all operands. Products that share one
// (the input of several linears) share its packed form.
struct Operand {
  cpu::PackedMatrix matrix;
  const float* x = nullptr;
  std::int64_t stride = 0;
  bool transposed = false, symmetric = false;
  std::int64_t words = 0;  // where its words begin
  std::int64_t first_panel = 0;
};
struct Product {
  const MatmulParams* params = nullptr;
  std::size_t a = 0, b = 0;
  std::int64_t pieces_across = 0;
  std::int64_t first_piece = 0;
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// The last item whose jobs begin at or before `job`.
template <class Item>
const Item& item_of(const std::vector<Item>& items, std::int64_t Item::*first, std::int64_t job) {
  return *(std::upper_bound(items.begin(), items.end(), job,
                            [&](std::int64_t j, const Item& item) { return j < item.*first; }) -
           1);
}

// All operands of a call.
class Operands {
 public:
  explicit Operands(const cpu::MatmulKernel& kernel) : kernel_(kernel) {}

  std::size_t add(bool left, std::int64_t rows, std::int64_t depth, const float* x, std::int64_t stride,
                  bool transposed, bool symmetric) {
    const cpu::PackedMatrix matrix(kernel_, left, rows, depth);
    for (std::size_t i = 0; i < all_.size(); ++i) {
      const Operand& o = all_[i];
      if (o.x == x && o.stride == stride && o.transposed == transposed && o.symmetric == symmetric &&
          o.matrix == matrix)
        return i;
    }
    all_.push_back({matrix, x, stride, transposed, symmetric, words_, panels_});
    words_ += ceil_div(matrix.words(), 16) * 16;
    panels_ += matrix.panels();
    return all_.size() - 1;
  }
  const std::vector<Operand>& all() const { return all_; }
  std::int64_t words() const { return words_; }
  std::int64_t panels() const { return panels_; }

 private:
  const cpu::MatmulKernel& kernel_;
  std::vector<Operand> all_;
  std::int64_t words_ = 0, panels_ = 0;
};

}  // namespace

void Matmul::run(std::span<const MatmulParams> products, Precision precision) {
  const cpu::MatmulKernel& kernel = cpu::matmul_kernel(precision == Precision::bf16);
  Operands operands(kernel);
  std::vector<Product> live;
  std::int64_t pieces = 0;
  for (const MatmulParams& p : products) {
    HADAL_CHECK(p.m >= 0 && p.n >= 0 && p.k >= 0 && (!p.c_symmetric || p.m == p.n));
    flops_ += (p.c_symmetric ? p.m + 1 : 2 * p.m) * p.n * p.k;
    if (p.k == 0 && !p.accumulate) {
      for (std::int64_t i = 0; i < p.m; ++i) std::fill_n(p.c + i * p.c_stride, p.n, 0.0F);
    }
    if (p.m == 0 || p.n == 0 || p.k == 0) continue;
    Product product{&p, operands.add(true, p.m, p.k, p.a, p.a_stride, p.a_transposed, p.a_symmetric),
                    // b is [k, n]: the rows of its packed form are its columns
                    operands.add(false, p.n, p.k, p.b, p.b_stride, !p.b_transposed, p.b_symmetric), 0,
                    pieces};
    product.pieces_across = ceil_div(operands.all()[product.b].matrix.panels(), kPieceColumns);
    pieces += ceil_div(operands.all()[product.a].matrix.panels(), kPieceRows) * product.pieces_across;
    live.push_back(product);
  }
  if (static_cast<std::int64_t>(packed_.size()) < operands.words())
    packed_ = Buffer<std::uint32_t>::uninitialised(static_cast<std::size_t>(operands.words()));

  std::uint32_t* words = packed_.data();
  pool_.parallel_for(operands.panels(), 2, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t job = begin; job < end; ++job) {
      const Operand& o = item_of(operands.all(), &Operand::first_panel, job);
      if (o.symmetric) {
        o.matrix.pack_symmetric(job - o.first_panel, o.x, o.stride, words + o.words);
      } else {
        o.matrix.pack(job - o.first_panel, o.x, o.stride, o.transposed, words + o.words);
      }
    }
  });
  pool_.parallel_for(pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t job = begin; job < end; ++job) {
      const Product& product = item_of(live, &Product::first_piece, job);
      const MatmulParams& p = *product.params;
      const Operand& a = operands.all()[product.a];
      const Operand& b = operands.all()[product.b];
      const std::int64_t piece = job - product.first_piece;
      const std::int64_t i = piece / product.pieces_across * kPieceRows;
      const std::int64_t j_begin = piece % product.pieces_across * kPieceColumns;
      for (std::int64_t j = j_begin; j < std::min(j_begin + kPieceColumns, b.matrix.panels()); ++j) {
        std::int64_t i_end = std::min(i + kPieceRows, a.matrix.panels());
        if (p.c_symmetric)  // what begins below the panel's last column is some other tile's mirror image
          i_end = std::min(i_end, ceil_div((j + 1) * b.matrix.width(), a.matrix.width()));
        if (i >= i_end) continue;
        multiply_panels(kernel, a.matrix, words + a.words, i, i_end, b.matrix, words + b.words, j, j + 1, p.c,
                        p.c_stride, p.accumulate);
        if (p.add == nullptr) continue;
        const std::int64_t row = i * a.matrix.width(), column = j * b.matrix.width();
        const std::int64_t at = row * p.c_stride + column;
        kernel.combine(p.scale, p.add_scale, p.add + at, std::min(i_end * a.matrix.width(), p.m) - row,
                       b.matrix.rows_of(j), p.c + at, p.c_stride);
      }
    }
  });
}

}  // namespace hadal
