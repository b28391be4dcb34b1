#include "train/matmul.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "ops/cpu/matmul_kernel.h"

namespace hadal {
namespace {

using cpu::kMatmulDepth;
using cpu::MatmulKernel;

// One thread's piece of c, in panels: its part of a packed depth block then stays in the second-level cache
// while a panel of b after the other passes through the first.
constexpr std::int64_t kPieceRows = 8, kPieceColumns = 2;

// Where the packed operands of one product are, and where its pieces begin among those of all products.
struct Plan {
  std::int64_t a_panels = 0, b_panels = 0;
  std::int64_t a = 0, b = 0;    // offsets in the packed words
  std::int64_t first_pack = 0;  // a panel of a or b, all of its depth
  std::int64_t first_piece = 0;
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

// An operand of `panels` panels lies as [depth block][panel][unit][width].
std::int64_t place(std::int64_t units_before, std::int64_t units, std::int64_t panels, std::int64_t panel,
                   std::int64_t width) {
  return (units_before * panels + panel * units) * width;
}

void pack_panel(const MatmulKernel& kernel, const MatmulParams& p, const Plan& plan, std::int64_t panel,
                std::uint32_t* packed) {
  const bool is_a = panel < plan.a_panels;
  if (!is_a) panel -= plan.a_panels;
  const std::int64_t width = is_a ? kernel.a_width : kernel.b_width;
  const std::int64_t rows = is_a ? p.m : p.n, panels = is_a ? plan.a_panels : plan.b_panels;
  for (std::int64_t k = 0; k < p.k; k += kMatmulDepth) {
    const std::int64_t depth = std::min(kMatmulDepth, p.k - k);
    // b is given as [k, n]: its rows here are its columns, so that "transposed" means the opposite.
    const cpu::MatmulPanel from{is_a ? p.a : p.b,
                                is_a ? p.a_stride : p.b_stride,
                                is_a ? p.a_transposed : !p.b_transposed,
                                panel * width,
                                std::min(width, rows - panel * width),
                                k,
                                depth};
    std::uint32_t* to =
        packed + (is_a ? plan.a : plan.b) + place(kernel.units(k), kernel.units(depth), panels, panel, width);
    (is_a ? kernel.pack_a : kernel.pack_b)(from, to);
  }
}

void multiply_piece(const MatmulKernel& kernel, const MatmulParams& p, const Plan& plan, std::int64_t piece,
                    const std::uint32_t* packed) {
  const std::int64_t a_begin = piece / plan.pieces_across * kPieceRows;
  const std::int64_t b_begin = piece % plan.pieces_across * kPieceColumns;
  const std::int64_t a_end = std::min(plan.a_panels, a_begin + kPieceRows);
  const std::int64_t b_end = std::min(plan.b_panels, b_begin + kPieceColumns);
  for (std::int64_t k = 0; k < p.k; k += kMatmulDepth) {
    const std::int64_t before = kernel.units(k), units = kernel.units(std::min(kMatmulDepth, p.k - k));
    for (std::int64_t j = b_begin; j < b_end; ++j) {
      const std::uint32_t* b = packed + plan.b + place(before, units, plan.b_panels, j, kernel.b_width);
      const std::int64_t column = j * kernel.b_width;
      for (std::int64_t i = a_begin; i < a_end; ++i) {
        const std::uint32_t* a = packed + plan.a + place(before, units, plan.a_panels, i, kernel.a_width);
        const std::int64_t row = i * kernel.a_width;
        kernel.multiply(a, b, units, std::min(kernel.a_width, p.m - row),
                        std::min(kernel.b_width, p.n - column), p.c + row * p.c_stride + column, p.c_stride,
                        p.accumulate || k > 0);
      }
    }
  }
}

}  // namespace

void Matmul::run(std::span<const MatmulParams> products, Precision precision) {
  const MatmulKernel& kernel = cpu::matmul_kernel(precision == Precision::bf16);
  std::vector<Plan> plans;
  plans.reserve(products.size());
  std::int64_t words = 0, packs = 0, pieces = 0;
  const auto take = [&words](std::int64_t n) {
    const std::int64_t at = words;
    words += ceil_div(n, 16) * 16;
    return at;
  };
  for (const MatmulParams& p : products) {
    HADAL_CHECK(p.m >= 0 && p.n >= 0 && p.k >= 0);
    Plan plan;
    plan.first_pack = packs;
    plan.first_piece = pieces;
    if (p.k > 0) {
      plan.a_panels = ceil_div(p.m, kernel.a_width);
      plan.b_panels = ceil_div(p.n, kernel.b_width);
    } else if (!p.accumulate) {
      for (std::int64_t i = 0; i < p.m; ++i) std::fill_n(p.c + i * p.c_stride, p.n, 0.0F);
    }
    plan.a = take(plan.a_panels * kernel.a_width * kernel.units(p.k));
    plan.b = take(plan.b_panels * kernel.b_width * kernel.units(p.k));
    packs += plan.a_panels + plan.b_panels;
    plan.pieces_across = ceil_div(plan.b_panels, kPieceColumns);
    pieces += ceil_div(plan.a_panels, kPieceRows) * plan.pieces_across;
    plans.push_back(plan);
  }
  if (static_cast<std::int64_t>(packed_.size()) < words)
    packed_ = Buffer<std::uint32_t>::uninitialised(static_cast<std::size_t>(words));

  const auto product_of = [&](const Plan& plan) -> const MatmulParams& {
    return products[static_cast<std::size_t>(&plan - plans.data())];
  };
  pool_.parallel_for(packs, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t job = begin; job < end; ++job) {
      const Plan& plan = plan_of(plans, &Plan::first_pack, job);
      pack_panel(kernel, product_of(plan), plan, job - plan.first_pack, packed_.data());
    }
  });
  pool_.parallel_for(pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t job = begin; job < end; ++job) {
      const Plan& plan = plan_of(plans, &Plan::first_piece, job);
      multiply_piece(kernel, product_of(plan), plan, job - plan.first_piece, packed_.data());
    }
  });
}

}  // namespace hadal
