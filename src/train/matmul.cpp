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

// The packed operands of one product, and where its jobs begin among those of all products.
struct Plan {
  const MatmulParams* product = nullptr;
  cpu::PackedMatrix a, b;
  std::int64_t a_at = 0, b_at = 0;  // in the packed words
  std::int64_t first_pack = 0;      // packing jobs: a panel of a or b
  std::int64_t first_piece = 0;     // pieces of c
  std::int64_t pieces_across = 0;
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// The last plan whose jobs begin at or before `job`.
const Plan& plan_of(const std::vector<Plan>& plans, std::int64_t Plan::*first, std::int64_t job) {
  return *(std::upper_bound(plans.begin(), plans.end(), job,
                            [&](std::int64_t j, const Plan& p) { return j < p.*first; }) -
           1);
}

}  // namespace

void Matmul::run(std::span<const MatmulParams> products, Precision precision) {
  const cpu::MatmulKernel& kernel = cpu::matmul_kernel(precision == Precision::bf16);
  std::vector<Plan> plans;
  plans.reserve(products.size());
  std::int64_t n_words = 0, packs = 0, pieces = 0;
  const auto take = [&n_words](std::int64_t n) {
    const std::int64_t at = n_words;
    n_words += ceil_div(n, 16) * 16;
    return at;
  };
  for (const MatmulParams& p : products) {
    HADAL_CHECK(p.m >= 0 && p.n >= 0 && p.k >= 0);
    flops_ += 2 * p.m * p.n * p.k;
    if (p.k == 0 && !p.accumulate) {
      for (std::int64_t i = 0; i < p.m; ++i) std::fill_n(p.c + i * p.c_stride, p.n, 0.0F);
    }
    if (p.m == 0 || p.n == 0 || p.k == 0) continue;
    Plan plan;
    plan.product = &p;
    plan.a = {kernel, true, p.m, p.k};
    plan.b = {kernel, false, p.n, p.k};
    plan.a_at = take(plan.a.words());
    plan.b_at = take(plan.b.words());
    plan.first_pack = packs;
    packs += plan.a.panels() + plan.b.panels();
    plan.first_piece = pieces;
    plan.pieces_across = ceil_div(plan.b.panels(), kPieceColumns);
    pieces += ceil_div(plan.a.panels(), kPieceRows) * plan.pieces_across;
    plans.push_back(plan);
  }
  if (static_cast<std::int64_t>(packed_.size()) < n_words)
    packed_ = Buffer<std::uint32_t>::uninitialised(static_cast<std::size_t>(n_words));

  std::uint32_t* words = packed_.data();
  pool_.parallel_for(packs, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t job = begin; job < end; ++job) {
      const Plan& plan = plan_of(plans, &Plan::first_pack, job);
      const MatmulParams& p = *plan.product;
      const std::int64_t panel = job - plan.first_pack, of_b = panel - plan.a.panels();
      if (of_b < 0) {
        plan.a.pack(panel, p.a, p.a_stride, p.a_transposed, words + plan.a_at);
      } else {  // b is [k, n]: the rows of its packed form are its columns
        plan.b.pack(of_b, p.b, p.b_stride, !p.b_transposed, words + plan.b_at);
      }
    }
  });
  pool_.parallel_for(pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t job = begin; job < end; ++job) {
      const Plan& plan = plan_of(plans, &Plan::first_piece, job);
      const MatmulParams& p = *plan.product;
      const std::int64_t piece = job - plan.first_piece;
      const std::int64_t i = piece / plan.pieces_across * kPieceRows,
                         j = piece % plan.pieces_across * kPieceColumns;
      multiply_panels(kernel, plan.a, words + plan.a_at, i, std::min(i + kPieceRows, plan.a.panels()), plan.b,
                      words + plan.b_at, j, std::min(j + kPieceColumns, plan.b.panels()), p.c, p.c_stride,
                      p.accumulate);
    }
  });
}

}  // namespace hadal
